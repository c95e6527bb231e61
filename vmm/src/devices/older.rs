//! Older versions of the devices' state: they load, and are written for a VMM that reads no newer one
//! if they can hold what the guest has done.

use serde::{Deserialize, Serialize};

use super::bus::DevicesState;
use super::serial::SerialPortState;
use super::test_port::TestPortState;

/// Version 1 of [`DevicesState`]: a test device without sequences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicesState1 {
    serial: SerialPortState,
    test_port: TestPortState1,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct TestPortState1 {
    marker: u32,
    writes: u64,
    reads: u64,
}

impl DevicesState1 {
    /// Returns the state in this version; `None` if it would lose some of it.
    pub fn of(state: &DevicesState) -> Option<Self> {
        let DevicesState { serial, test_port } = state.clone();
        let TestPortState { marker, writes, reads, ports, page } = test_port;
        let unused = Default::default();
        let test_port = TestPortState1 { marker, writes, reads };
        (ports == unused && page == unused).then_some(Self { serial, test_port })
    }
}

impl From<DevicesState1> for DevicesState {
    fn from(older: DevicesState1) -> Self {
        let DevicesState1 { serial, test_port: TestPortState1 { marker, writes, reads } } = older;
        let test_port = TestPortState { marker, writes, reads, ..TestPortState::default() };
        Self { serial, test_port }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_survives_unless_it_has_what_the_version_lacks() {
        let mut state = DevicesState { serial: Default::default(), test_port: Default::default() };
        state.test_port.write(super::super::test_port::PORT, &7_u32.to_le_bytes());
        let older = DevicesState1::of(&state).unwrap();
        assert_eq!(DevicesState::from(older), state);
        state.test_port.page.read(0, &mut [0]);
        assert_eq!(DevicesState1::of(&state), None);
    }
}
