//! `--device`: a device behind PCI.

use std::fmt;
use std::str::FromStr;

/// The value of `--device`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceOption {
    /// An entropy device.
    VirtioRng,
}

/// Reasons to reject a `--device` value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceOptionError {
    /// There is no such kind of device.
    #[error("unknown device \"{0}\": known is virtio-rng")]
    Kind(String),
    /// The device does not have this option.
    #[error("unknown option \"{option}\" of {device}, which has none")]
    Option {
        /// The device.
        device: &'static str,
        /// The option.
        option: String,
    },
}

impl FromStr for DeviceOption {
    type Err = DeviceOptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, options) = text.split_once(',').unwrap_or((text, ""));
        let device = match kind {
            "virtio-rng" => Self::VirtioRng,
            other => return Err(DeviceOptionError::Kind(other.to_owned())),
        };
        match options.split(',').find(|option| !option.is_empty()) {
            None => Ok(device),
            Some(option) => {
                Err(DeviceOptionError::Option { device: "virtio-rng", option: option.to_owned() })
            }
        }
    }
}

impl fmt::Display for DeviceOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VirtioRng => f.write_str("virtio-rng"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_they_are_given() {
        let device: DeviceOption = "virtio-rng".parse().unwrap();
        assert_eq!(device.to_string(), "virtio-rng");
    }

    #[test]
    fn rejects_unknown_devices_and_options() {
        let error = |text: &str| text.parse::<DeviceOption>().unwrap_err().to_string();
        insta::assert_snapshot!(error("e1000"), @"");
        insta::assert_snapshot!(error("virtio-rng,rate=1"), @"");
    }
}
