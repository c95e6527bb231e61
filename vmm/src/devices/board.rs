//! The devices that every PC has besides KVM's chips, and where their interrupts go.

use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::VmFd;
use nix::sys::eventfd::EventFd;
use serde::{Deserialize, Serialize};

use super::power::{self, PowerState};
use super::rtc::{self, RtcState};

/// How long to rely on the host's clock without looking at it again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The state of these devices; the default is that after power-on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoardState {
    /// Power button and power-off.
    pub power: PowerState,
    /// The real-time clock.
    pub rtc: RtcState,
}

impl BoardState {
    /// Whether no guest has used these devices.
    pub fn is_unused(&self) -> bool {
        self.power == PowerState::default() && self.rtc.is_unused()
    }

    /// Returns the state after a reset, which the battery-backed parts survive.
    pub fn after_reset(self) -> Self {
        Self { power: PowerState::default(), rtc: self.rtc.after_reset() }
    }
}

/// The devices.
#[derive(Debug)]
pub struct Board {
    state: BoardState,
    vm: Arc<VmFd>,
    /// Wakes the main loop, which waits for the clock's next interrupt.
    wake: Arc<EventFd>,
}

impl Board {
    /// Creates the devices. What has reached KVM's chips is part of their saved state.
    pub fn new(state: BoardState, vm: Arc<VmFd>, wake: Arc<EventFd>) -> Self {
        Self { state, vm, wake }
    }

    /// The devices' state.
    pub fn state(&self) -> &BoardState {
        &self.state
    }

    /// Calls `act` with the power management, and moves its interrupt line if that has changed.
    pub fn with_power<T>(&mut self, act: impl FnOnce(&mut PowerState) -> T) -> T {
        let power = &mut self.state.power;
        let before = power.interrupt();
        let result = act(power);
        if power.interrupt() != before {
            self.set_power_line();
        }
        result
    }

    /// Handles a guest read of the clock.
    pub fn read_clock(&mut self, port: u16) -> u8 {
        self.with_clock(|clock, now| clock.read(port, now))
    }

    /// Handles a guest write to the clock.
    pub fn write_clock(&mut self, port: u16, value: u8) {
        self.with_clock(|clock, now| clock.write(port, value, now));
    }

    /// Calls `act` with the clock and the time, and wakes the main loop if the next interrupt comes
    /// at another time then: reading a register may acknowledge the last one.
    fn with_clock<T>(&mut self, act: impl FnOnce(&mut RtcState, i128) -> T) -> T {
        let (clock, now) = (&mut self.state.rtc, rtc::host_time());
        let before = clock.next_interrupt(now);
        let result = act(clock, now);
        if clock.next_interrupt(now) != before {
            // The counter can only be full if the main loop has a wake-up coming anyway.
            let _ = self.wake.write(1);
        }
        result
    }

    /// Raises the clock's interrupt if it is due; returns whether it was.
    pub fn service_clock(&mut self) -> bool {
        let due = self.state.rtc.raises_interrupt(rtc::host_time());
        if due {
            self.set_line(rtc::IRQ, true);
            self.set_line(rtc::IRQ, false);
        }
        due
    }

    /// Returns the time after which to look for the clock's next interrupt.
    pub fn next_clock_interrupt(&self) -> Option<Duration> {
        let next = self.state.rtc.next_interrupt(rtc::host_time())?;
        // It may come earlier: when the host's clock is set.
        Some(next.min(LOOK_AGAIN))
    }

    /// Sets the levels of the interrupt lines, which may be as they should be already.
    pub fn renew_lines(&self) {
        self.set_power_line();
    }

    fn set_power_line(&self) {
        self.set_line(power::IRQ, self.state.power.interrupt());
    }

    fn set_line(&self, line: u32, level: bool) {
        if let Err(error) = self.vm.set_irq_line(line, level) {
            tracing::warn!(line, level, %error, "interrupt_failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip};
    use kvm_ioctls::Kvm;

    use super::*;

    fn board(state: BoardState) -> Board {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        Board::new(state, Arc::new(vm), Arc::new(EventFd::from_value(0).unwrap()))
    }

    /// Whether the IOAPIC sees the line, which is masked, as asserted or as having been pulsed.
    fn requests(board: &Board, line: u32) -> bool {
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        board.vm.get_irqchip(&mut chip).unwrap();
        // SAFETY: of the IOAPIC KVM has filled this member of the union.
        unsafe { chip.chip.ioapic.irr >> line & 1 == 1 }
    }

    #[test]
    fn power_buttons_line_is_asserted_until_it_is_acknowledged() {
        let mut first = board(BoardState::default());
        first.with_power(|power| power.write(power::EVENTS + 2, &[0, 1]));
        assert!(!requests(&first, power::IRQ));
        first.with_power(PowerState::press_button);
        assert!(requests(&first, power::IRQ));
        // In another VM, as after the death of a process.
        let mut second = board(first.state().clone());
        second.renew_lines();
        assert!(requests(&second, power::IRQ));
        second.with_power(|power| power.write(power::EVENTS, &[0, 1]));
        assert!(!requests(&second, power::IRQ));
    }

    #[test]
    fn main_loop_is_woken_when_the_clocks_next_interrupt_changes() {
        let mut board = board(BoardState::default());
        let mut woken = |act: &mut dyn FnMut(&mut Board)| {
            act(&mut board);
            board.wake.write(1).unwrap();
            board.wake.read().unwrap() > 1
        };
        let select = |register| move |board: &mut Board| board.write_clock(rtc::INDEX, register);
        const B: u8 = 11;
        const C: u8 = 12;
        const UPDATE: u8 = 0x10;
        assert!(!woken(&mut select(B)));
        assert!(woken(&mut |board| board.write_clock(rtc::DATA, UPDATE)));
        assert!(!woken(&mut |board| board.write_clock(rtc::DATA, UPDATE)));
        for _ in 0..2 {
            woken(&mut |board| {
                let until = Instant::now() + Duration::from_secs(10);
                while !board.service_clock() {
                    assert!(Instant::now() < until, "no update within 10 s");
                    std::thread::park_timeout(Duration::from_millis(10));
                }
                assert_eq!(board.next_clock_interrupt(), None, "it is not acknowledged");
            });
            woken(&mut select(C));
            assert!(woken(&mut |board| _ = board.read_clock(rtc::DATA)));
        }
    }
}
