//! `--device`: a device behind PCI.

use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use super::virtio::RngLimit;

/// The value of `--device`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceOption {
    /// An entropy device, which may be limited.
    VirtioRng(Option<RngLimit>),
}

/// Reasons to reject a `--device` value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceOptionError {
    /// The kind of device is unknown.
    #[error("unknown device \"{0}\": known is virtio-rng")]
    Kind(String),
    /// The device does not have this option.
    #[error("unknown option \"{0}\" of virtio-rng: known are max-bytes=N and period=MS")]
    Option(String),
    /// The option takes a number from 1.
    #[error("invalid option \"{0}\": expected a whole number from 1")]
    Number(String),
    /// Only one of two options was given.
    #[error("virtio-rng needs both max-bytes= and period=, or neither")]
    HalfLimit,
}

impl DeviceOption {
    /// Its kind, which the guest sees: the rest may differ after an update. It is also the name of the
    /// section that has its state.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::VirtioRng(_) => "virtio-rng",
        }
    }
}

impl FromStr for DeviceOption {
    type Err = DeviceOptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        match parts.next().unwrap_or_default() {
            "virtio-rng" => rng(parts).map(Self::VirtioRng),
            other => Err(DeviceOptionError::Kind(other.to_owned())),
        }
    }
}

fn rng<'a>(options: impl Iterator<Item = &'a str>) -> Result<Option<RngLimit>, DeviceOptionError> {
    let (mut bytes, mut period) = (None, None);
    for option in options {
        let unknown = || DeviceOptionError::Option(option.to_owned());
        let (name, value) = option.split_once('=').ok_or_else(unknown)?;
        let place = match name {
            "max-bytes" => &mut bytes,
            "period" => &mut period,
            _ => return Err(unknown()),
        };
        let number: Option<NonZeroU64> = value.parse().ok();
        *place = Some(number.ok_or_else(|| DeviceOptionError::Number(option.to_owned()))?);
    }
    match (bytes, period) {
        (None, None) => Ok(None),
        (Some(bytes), Some(period)) => {
            let period = Duration::from_millis(period.get());
            Ok(Some(RngLimit { bytes: bytes.get(), period }))
        }
        _ => Err(DeviceOptionError::HalfLimit),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn parses_devices() {
        let plain: DeviceOption = "virtio-rng".parse().unwrap();
        assert_eq!(plain, DeviceOption::VirtioRng(None));
        let limit = RngLimit { bytes: 1024, period: Duration::from_millis(20) };
        let limited: DeviceOption = "virtio-rng,max-bytes=1024,period=20".parse().unwrap();
        assert_eq!(limited, DeviceOption::VirtioRng(Some(limit)));
        assert_eq!(limited.kind(), "virtio-rng");
    }

    #[rstest]
    #[case("e1000")]
    #[case("")]
    #[case("virtio-rng,")]
    #[case("virtio-rng,rate=1")]
    #[case("virtio-rng,max-bytes=0,period=1")]
    #[case("virtio-rng,max-bytes=1k,period=1")]
    #[case("virtio-rng,period=1")]
    fn rejects_invalid_devices(#[case] text: &str) {
        let error = text.parse::<DeviceOption>().unwrap_err();
        insta::assert_snapshot!(format!("device_refused_{}", text.replace([',', '='], "_")), error);
    }
}
