//! The real-time clock of a PC: a Motorola MC146818 with 114 bytes of memory, whose time is the
//! host's until the guest sets it. (Data sheet of the MC146818; QEMU `hw/rtc/mc146818rtc.c`.)
//!
//! It raises update-ended and alarm interrupts. There is no periodic interrupt and no square wave:
//! Linux replaces the former by timers of its own.

mod calendar;

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use calendar::{ALARM, ALARMS, CENTURY, Mode, TIME};

/// Selects a register.
pub const INDEX: u16 = 0x70;
/// Reads or writes it.
pub const DATA: u16 = 0x71;
/// The edge-triggered interrupt.
pub const IRQ: u32 = 8;
/// The register of the century, which the FADT names.
pub const CENTURY_REGISTER: u8 = CENTURY as u8;

const A: usize = 10;
const B: usize = 11;
const C: usize = 12;
const D: usize = 13;
/// In A: an update is about to happen.
const A_UPDATE: u8 = 1 << 7;
const A_DIVIDER: u8 = 0x70;
/// Values of the divider above this one hold the clock.
const A_DIVIDER_RUNS: u8 = 0x20;
const A_POWER_ON: u8 = A_DIVIDER_RUNS | 6;
/// In B: the guest sets the time, so the clock stands.
const B_SET: u8 = 1 << 7;
const B_SQUARE_WAVE: u8 = 1 << 3;
const B_POWER_ON: u8 = calendar::HOURS_24;
/// In B: enable the interrupt; in C: the event has happened. (Update ended, alarm, any.)
const UPDATE: u8 = 1 << 4;
const ALARM_EVENT: u8 = 1 << 5;
const PERIODIC: u8 = 1 << 6;
const C_INTERRUPT: u8 = 1 << 7;
/// The memory is valid: the battery is good.
const D_VALID: u8 = 1 << 7;

const SECOND: i128 = 1_000_000_000;
/// For how long an update is announced before it happens, in nanoseconds.
const UPDATE_AHEAD: i128 = 244_000;
/// A clock whose divider was held begins its first second halfway.
const HALF_SECOND: i128 = SECOND / 2;

/// The registers and the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    #[serde(deserialize_with = "checked::index")]
    index: u8,
    /// All registers; those of the time are valid only while the clock stands.
    #[serde(with = "serde_bytes")]
    registers: [u8; 128],
    /// What to add to the host's real time, in seconds and nanoseconds; `None` while the clock
    /// stands.
    #[serde(deserialize_with = "checked::ahead")]
    ahead: Option<(i64, u32)>,
    /// The second up to which events were looked for.
    #[serde(deserialize_with = "checked::second")]
    seen: Option<i64>,
}

/// Reading what a guest relies on: a forged state must not make the VMM panic.
mod checked {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer};

    /// More than the clock's 10,000 years.
    const SECONDS: std::ops::Range<i64> = -(1 << 40)..1 << 40;

    pub fn index<'de, D: Deserializer<'de>>(from: D) -> Result<u8, D::Error> {
        let index = u8::deserialize(from)?;
        (index < 128)
            .then_some(index)
            .ok_or_else(|| D::Error::custom("the clock's index is above 127"))
    }

    pub fn second<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
        let second = Option::deserialize(from)?;
        let valid = second.is_none_or(|second| SECONDS.contains(&second));
        valid
            .then_some(second)
            .ok_or_else(|| D::Error::custom("the clock's second is out of range"))
    }

    pub fn ahead<'de, D: Deserializer<'de>>(from: D) -> Result<Option<(i64, u32)>, D::Error> {
        let ahead = Option::<(i64, u32)>::deserialize(from)?;
        let valid = ahead
            .is_none_or(|(seconds, nanos)| SECONDS.contains(&seconds) && nanos < 1_000_000_000);
        valid.then_some(ahead).ok_or_else(|| D::Error::custom("the clock's offset is out of range"))
    }
}

impl Default for RtcState {
    fn default() -> Self {
        let mut registers = [0; 128];
        (registers[A], registers[B]) = (A_POWER_ON, B_POWER_ON);
        Self { index: 0, registers, ahead: Some((0, 0)), seen: None }
    }
}

/// Returns the host's real time, in nanoseconds since 1970.
pub fn host_time() -> i128 {
    match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => since.as_nanos() as i128,
        Err(error) => -(error.duration().as_nanos() as i128),
    }
}

impl RtcState {
    /// Whether it is as after power-on, but for the time.
    pub fn is_unused(&self) -> bool {
        Self { seen: None, ..self.clone() } == Self::default()
    }

    /// Returns the state after a reset of the machine, which the battery-backed parts survive.
    pub fn after_reset(mut self) -> Self {
        self.registers[B] &= !(UPDATE | ALARM_EVENT | PERIODIC | B_SQUARE_WAVE);
        self.registers[C] = 0;
        self
    }

    /// Handles a guest read of a byte at `host` time.
    pub fn read(&mut self, port: u16, host: i128) -> u8 {
        if port != DATA {
            return 0xff;
        }
        let register = usize::from(self.index);
        match (register, self.time(host)) {
            (A, Some(time)) if SECOND - time.rem_euclid(SECOND) <= UPDATE_AHEAD => {
                self.registers[A] | A_UPDATE
            }
            (C, _) => {
                self.look(host);
                std::mem::take(&mut self.registers[C])
            }
            (D, _) => D_VALID,
            (register, Some(time)) if TIME.contains(&register) => {
                let mut registers = self.registers;
                self.mode().show(time.div_euclid(SECOND) as i64, &mut registers);
                registers[register]
            }
            (register, _) => self.registers[register],
        }
    }

    /// Handles a guest write of a byte at `host` time.
    pub fn write(&mut self, port: u16, value: u8, host: i128) {
        if port != DATA {
            // The highest bit masks NMIs on a PC.
            self.index = value & 0x7f;
            return;
        }
        self.look(host);
        let register = usize::from(self.index);
        match register {
            A => self.change(host, |registers| registers[A] = value & !A_UPDATE),
            B => self.change(host, |registers| {
                let clear = if value & B_SET != 0 { UPDATE } else { 0 };
                registers[B] = value & !clear;
            }),
            C | D => {}
            _ if TIME.contains(&register) => self.set_time(host, register, value),
            _ => self.registers[register] = value,
        }
    }

    /// Looks for events up to `host` time; returns true if the interrupt must be raised.
    pub fn raises_interrupt(&mut self, host: i128) -> bool {
        self.look(host);
        let enabled = self.registers[B] & (UPDATE | ALARM_EVENT);
        let raised = self.registers[C] & C_INTERRUPT != 0;
        if raised || self.registers[C] & enabled == 0 {
            return false;
        }
        self.registers[C] |= C_INTERRUPT;
        true
    }

    /// Returns the time from `host` time until the next interrupt.
    pub fn next_interrupt(&self, host: i128) -> Option<Duration> {
        let time = self.time(host)?;
        let second = time.div_euclid(SECOND) as i64;
        // The next interrupt comes after this one is acknowledged.
        let waits = self.registers[C] & C_INTERRUPT == 0;
        let wanted = |event| waits && self.registers[B] & event != 0;
        let update = wanted(UPDATE).then_some(second + 1);
        let alarm = || self.mode().next_alarm(second, self.alarm());
        let alarm = wanted(ALARM_EVENT).then(alarm).flatten();
        let next = update.into_iter().chain(alarm).min()?;
        Some(Duration::from_nanos((i128::from(next) * SECOND - time) as u64))
    }

    fn mode(&self) -> Mode {
        Mode::of(self.registers[B])
    }

    fn alarm(&self) -> [u8; ALARMS] {
        ALARM.map(|register| self.registers[register])
    }

    /// The guest's time in nanoseconds; `None` if the clock stands.
    fn time(&self, host: i128) -> Option<i128> {
        let (seconds, nanos) = self.ahead?;
        Some(host + i128::from(seconds) * SECOND + i128::from(nanos))
    }

    fn start_at(&mut self, time: i128, host: i128) {
        let ahead = time - host;
        let nanos = ahead.rem_euclid(SECOND) as u32;
        self.ahead = Some((ahead.div_euclid(SECOND) as i64, nanos));
        self.seen = Some(time.div_euclid(SECOND) as i64);
    }

    fn stands(&self) -> bool {
        self.is_held() || self.registers[B] & B_SET != 0
    }

    fn is_held(&self) -> bool {
        self.registers[A] & A_DIVIDER > A_DIVIDER_RUNS
    }

    /// Changes register A or B, and stops or starts the clock if that does so.
    fn change(&mut self, host: i128, act: impl FnOnce(&mut [u8; 128])) {
        let was_held = self.is_held();
        act(&mut self.registers);
        match (self.time(host), self.stands()) {
            (Some(time), true) => {
                self.mode().show(time.div_euclid(SECOND) as i64, &mut self.registers);
                self.ahead = None;
            }
            (None, false) => {
                let begun = if was_held { HALF_SECOND } else { 0 };
                let time = i128::from(self.mode().seconds(&self.registers)) * SECOND;
                self.start_at(time + begun, host);
            }
            _ => {}
        }
    }

    fn set_time(&mut self, host: i128, register: usize, value: u8) {
        let time = self.time(host);
        if let Some(time) = time {
            self.mode().show(time.div_euclid(SECOND) as i64, &mut self.registers);
        }
        self.registers[register] = value;
        if let Some(time) = time {
            let second = i128::from(self.mode().seconds(&self.registers));
            self.start_at(second * SECOND + time.rem_euclid(SECOND), host);
        }
    }

    /// Records the events up to `host` time in register C.
    fn look(&mut self, host: i128) {
        let Some(time) = self.time(host) else { return };
        let now = time.div_euclid(SECOND) as i64;
        let Some(seen) = self.seen.replace(now) else { return };
        if seen < now {
            self.registers[C] |= UPDATE;
            if self.mode().next_alarm(seen, self.alarm()).is_some_and(|alarm| alarm <= now) {
                self.registers[C] |= ALARM_EVENT;
            }
        }
    }
}

#[cfg(test)]
mod tests;
