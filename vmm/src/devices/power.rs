//! ACPI's fixed registers, through which the guest sees the power button and powers the machine off
//! (ACPI 6.5, chapter 4.8.3). Writes to the event registers clear bits, as on a PC.

use serde::{Deserialize, Serialize};

/// The status register and the enable register.
pub const EVENTS: u16 = 0x600;
/// Bytes of both.
pub const EVENTS_LEN: u8 = 4;
/// The control register.
pub const CONTROL: u16 = 0x604;
/// Its bytes.
pub const CONTROL_LEN: u8 = 2;
/// The last port.
pub const LAST: u16 = CONTROL + CONTROL_LEN as u16 - 1;
/// The level-triggered interrupt, asserted as long as an enabled event is set (the SCI).
pub const IRQ: u32 = 9;
/// The sleep type that means "off" (S5).
pub const SLEEP_TYPE_OFF: u8 = 5;

/// In the event registers: the power button.
const POWER_BUTTON: u16 = 1 << 8;
/// Events that can be enabled: the global lock's, which never happens, and the power button.
const EVENTS_FREE: u16 = 1 << 5 | POWER_BUTTON;
/// In the control register: ACPI is in use, as always on this machine.
const SCI_ENABLED: u16 = 1;
const SLEEP_TYPE_SHIFT: u32 = 10;
const SLEEP_TYPE: u16 = 0b111 << SLEEP_TYPE_SHIFT;
/// Enters the sleep state; reads as 0.
const SLEEP: u16 = 1 << 13;
/// The bits that keep what is written: bus master reload, sleep type.
const CONTROL_FREE: u16 = 1 << 1 | SLEEP_TYPE;

/// The registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerState {
    events: u16,
    enabled: u16,
    control: u16,
}

impl PowerState {
    /// Handles a guest read, of any width.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        let words = [self.events, self.enabled, self.control | SCI_ENABLED];
        let bytes = words.map(u16::to_le_bytes);
        let bytes = bytes.as_flattened().iter().skip(usize::from(port - EVENTS));
        for (place, byte) in data.iter_mut().zip(bytes) {
            *place = *byte;
        }
    }

    /// Handles a guest write, of any width; returns true if it powers the machine off.
    pub fn write(&mut self, port: u16, data: &[u8]) -> bool {
        let mut off = false;
        for (at, byte) in (usize::from(port - EVENTS)..).zip(data) {
            let shift = 8 * (at % 2);
            let (value, mask) = (u16::from(*byte) << shift, 0xff << shift);
            match at / 2 {
                0 => self.events &= !value,
                1 => self.enabled = self.enabled & !mask | value & EVENTS_FREE,
                2 => {
                    self.control = self.control & !mask | value & CONTROL_FREE;
                    let sleep_type = (self.control & SLEEP_TYPE) >> SLEEP_TYPE_SHIFT;
                    off |= value & SLEEP != 0 && sleep_type == u16::from(SLEEP_TYPE_OFF);
                }
                _ => {}
            }
        }
        off
    }

    /// Presses the power button.
    pub fn press_button(&mut self) {
        self.events |= POWER_BUTTON;
    }

    /// The level of the interrupt.
    pub fn interrupt(&self) -> bool {
        self.events & self.enabled != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(power: &PowerState, port: u16) -> u16 {
        let mut bytes = [0xff; 2];
        power.read(port, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    #[test]
    fn button_interrupts_once_enabled_until_it_is_acknowledged() {
        let mut power = PowerState::default();
        power.press_button();
        assert_eq!((word(&power, EVENTS), power.interrupt()), (POWER_BUTTON, false));
        power.write(EVENTS + 2, &0xffff_u16.to_le_bytes());
        assert_eq!((word(&power, EVENTS + 2), power.interrupt()), (EVENTS_FREE, true));
        power.write(EVENTS, &(!POWER_BUTTON).to_le_bytes());
        assert!(power.interrupt(), "other events are acknowledged");
        power.write(EVENTS + 1, &[1]);
        assert_eq!((word(&power, EVENTS), power.interrupt()), (0, false));
    }

    #[test]
    fn only_the_sleep_type_of_s5_powers_off() {
        for sleep_type in 0..8_u16 {
            let mut power = PowerState::default();
            let value = sleep_type << SLEEP_TYPE_SHIFT;
            assert!(!power.write(CONTROL, &value.to_le_bytes()));
            assert_eq!(power.write(CONTROL, &(value | SLEEP).to_le_bytes()), sleep_type == 5);
            assert_eq!(word(&power, CONTROL), value | SCI_ENABLED);
        }
    }

    #[test]
    fn accesses_of_any_width_are_harmless() {
        let mut power = PowerState::default();
        for port in EVENTS..=LAST {
            for length in [1, 2, 4] {
                assert!(!power.write(port, &vec![0; length]));
                let mut bytes = vec![0xff; length];
                power.read(port, &mut bytes);
            }
        }
        assert_eq!(power, PowerState::default());
        let mut bytes = [0xff; 4];
        power.read(LAST, &mut bytes);
        assert_eq!(bytes, [0, 0xff, 0xff, 0xff]);
    }
}
