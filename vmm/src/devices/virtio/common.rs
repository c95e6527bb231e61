//! The registers of a device that all kinds have: features, status, configuration vector
//! (chapter 4.1.4.3).

use serde::{Deserialize, Serialize};

/// No vector of MSI-X.
pub const NO_VECTOR: u16 = 0xffff;

/// Feature bits of the transport (chapter 6).
pub mod feature {
    /// Descriptors may refer to tables of descriptors.
    pub const INDIRECT: u64 = 1 << 28;
    /// Notifications are suppressed by index.
    pub const EVENT_INDEX: u64 = 1 << 29;
    /// The device is not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;
    /// A single queue can be reset.
    pub const QUEUE_RESET: u64 = 1 << 40;
    /// All of these.
    pub const TRANSPORT: u64 = INDIRECT | EVENT_INDEX | VERSION_1 | QUEUE_RESET;
}

/// Bits of the device status (chapter 2.1).
pub mod status {
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Driver and device agree on features.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot continue.
    pub const NEEDS_RESET: u8 = 64;
}

/// The registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Common {
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    /// The features that the driver has chosen.
    pub(super) features: u64,
    pub(super) config_vector: u16,
    pub(super) status: u8,
    pub(super) queue_select: u16,
}

impl Default for Common {
    fn default() -> Self {
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
        }
    }
}

impl Common {
    /// Whether the device may use its queues.
    pub fn is_live(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    /// Whether driver and device have agreed on this feature.
    pub fn has(&self, feature: u64) -> bool {
        self.status & status::FEATURES_OK != 0 && self.features & feature != 0
    }

    /// Returns the half of `offered` that the driver has selected.
    pub fn offered(&self, offered: u64) -> u32 {
        half(offered, self.device_feature_select)
    }

    /// Returns the selected half of the features that the driver has chosen.
    pub fn chosen(&self) -> u32 {
        half(self.features, self.driver_feature_select)
    }

    /// Sets the selected half of the features that the driver chooses. They are fixed once both
    /// have agreed on them.
    pub fn choose(&mut self, value: u32) {
        let shift = match self.driver_feature_select {
            _ if self.status & status::FEATURES_OK != 0 => return,
            select @ 0..=1 => 32 * select,
            _ => return,
        };
        let mask = u64::from(u32::MAX) << shift;
        self.features = self.features & !mask | u64::from(value) << shift;
    }

    /// Sets the status, but not to 0, which is a reset. The device does not agree on features that
    /// it has not `offered`, or without [`feature::VERSION_1`].
    pub fn set_status(&mut self, value: u8, offered: u64) {
        let mut value = value | self.status & status::NEEDS_RESET;
        let agrees = self.features & !offered == 0 && self.features & feature::VERSION_1 != 0;
        if value & status::FEATURES_OK != 0 && !agrees {
            value &= !status::FEATURES_OK;
        }
        self.status = value;
    }
}

fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: u64 = feature::TRANSPORT | 1;

    fn choosing(features: u64) -> Common {
        let mut common = Common::default();
        for select in 0..3 {
            common.driver_feature_select = select;
            common.choose(half(features, select));
        }
        common.set_status(1 | 2 | status::FEATURES_OK, OFFERED);
        common
    }

    #[test]
    fn agrees_on_offered_features_only() {
        let agreed = choosing(feature::VERSION_1 | 1);
        assert!(agreed.has(feature::VERSION_1) && agreed.has(1));
        assert!(!agreed.has(feature::EVENT_INDEX));
        for refused in [feature::VERSION_1 | 2, 1, 0] {
            assert_eq!(choosing(refused).status, 3, "{refused:#x}");
            assert!(!choosing(refused).has(1));
        }
    }

    #[test]
    fn agreed_features_are_fixed() {
        let mut common = choosing(feature::VERSION_1);
        common.driver_feature_select = 0;
        common.choose(1);
        assert_eq!((common.chosen(), common.features), (0, feature::VERSION_1));
        common.device_feature_select = 1;
        assert_eq!(common.offered(OFFERED), 1 | 1 << 8);
    }

    #[test]
    fn broken_device_is_not_live_until_it_is_reset() {
        let mut common = choosing(feature::VERSION_1);
        assert!(!common.is_live());
        common.set_status(0xf, OFFERED);
        assert!(common.is_live());
        common.status |= status::NEEDS_RESET;
        common.set_status(0xf, OFFERED);
        assert!(!common.is_live());
    }
}
