//! What a virtio device is as a PCI function (chapter 4.1): capabilities, BAR, queues, interrupts.

use std::sync::Arc;

use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;
use virtio_queue::QueueT;

use super::common::{Common, NO_VECTOR, feature, status};
use super::registers::{self, Registers, Request, VirtQueue};
use super::state::SavedQueue;
use super::worker::Kick;
use super::{QueueError, VirtioDevice, VirtioState, VirtioStateError};
use crate::devices::pci::{
    COMMAND, COMMAND_BUS_MASTER, COMMAND_NO_INTX, ConfigSpace, Identity, Intx, MSIX_CAPABILITY,
    MSIX_CONTROL_WRITABLE, Message, Msix,
};
use crate::memory::GuestMemory;

/// Red Hat, for virtio.
const VENDOR: u16 = 0x1af4;
/// The PCI device ID is this plus the virtio device ID.
const FIRST_DEVICE: u16 = 0x1040;
/// The ID of vendor-specific capabilities.
const VENDOR_SPECIFIC: u8 = 0x09;

/// What is in the BAR: a page for each structure.
pub const BAR_SIZE: u64 = 0x8000;
pub(super) const PAGE: u64 = 0x1000;
const COMMON: u64 = 0;
pub(super) const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x5000;
/// Distance between the notification addresses of two queues.
const NOTIFY_MULTIPLIER: u32 = 4;

/// Types of virtio's capabilities.
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_CONFIG_ACCESS: u8 = 5;
/// Offsets in the last of them: BAR, offset, length, data.
const ACCESS_BAR: usize = 4;
const ACCESS_OFFSET: usize = 8;
const ACCESS_LENGTH: usize = 12;
const ACCESS_DATA: usize = 16;

/// In the ISR status: a queue, or the configuration.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Where a function is.
#[derive(Clone, Copy, Debug)]
pub struct FunctionConfig {
    /// Its device number.
    pub slot: u8,
    /// The address of its BAR after power-on.
    pub bar: u32,
    /// The interrupt line that its configuration space shows.
    pub line: u8,
}

/// What a function is connected to.
#[derive(Debug)]
pub struct Wiring {
    /// Where its messages go.
    pub vm: Arc<VmFd>,
    /// Its interrupt pin.
    pub intx: Intx,
    /// RAM.
    pub memory: GuestMemory,
}

/// The function's state, and what it acts on.
#[derive(Debug)]
pub struct VirtioFunction {
    name: String,
    pub(super) config: ConfigSpace,
    /// Offsets of two capabilities.
    msix_capability: usize,
    pub(super) access_capability: usize,
    msix: Msix,
    common: Common,
    isr: u8,
    queues: Vec<VirtQueue>,
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) wiring: Wiring,
    kick: Arc<Kick>,
    /// The level of its interrupt line.
    pub(super) line: bool,
    /// What the guest does wrong was logged; it could do so forever.
    complained: bool,
    /// It may access RAM.
    pub(super) runs: bool,
    /// Interrupts may have been lost in the process before this one.
    renew: bool,
}

/// Returns the queue that a write to this offset of the BAR notifies.
pub(super) fn notified(offset: u64) -> Option<u32> {
    let queue = offset.checked_sub(NOTIFY).filter(|_| offset < NOTIFY + PAGE)?;
    let queue = queue as u32 / NOTIFY_MULTIPLIER;
    (queue < 64).then_some(queue)
}

impl VirtioFunction {
    pub(super) fn new(
        name: String,
        at: FunctionConfig,
        device: Box<dyn VirtioDevice>,
        wiring: Wiring,
        kick: Arc<Kick>,
    ) -> Self {
        let identity = Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + device.id(),
            revision: 1,
            class: device.class(),
            subsystem: FIRST_DEVICE + device.id(),
        };
        let mut config = ConfigSpace::new(identity);
        config.add_memory_bar(at.bar, BAR_SIZE as u32);
        config.add_interrupt_pin(at.line);
        let queues: Vec<_> = device.queue_sizes().iter().copied().map(VirtQueue::new).collect();
        // One for each queue, and one for the configuration.
        let vectors = queues.len() as u16 + 1;
        let mut msix = (vectors - 1).to_le_bytes().to_vec();
        msix.extend((MSIX_TABLE as u32).to_le_bytes());
        msix.extend((MSIX_PENDING as u32).to_le_bytes());
        let msix_writable = MSIX_CONTROL_WRITABLE.to_le_bytes();
        let msix_capability = config.add_capability(MSIX_CAPABILITY, &msix, &msix_writable);
        for (kind, offset, length, more) in [
            (CAP_COMMON, COMMON, registers::BYTES, None),
            (CAP_ISR, ISR, 1, None),
            (CAP_DEVICE, DEVICE, PAGE, None),
            (CAP_NOTIFY, NOTIFY, PAGE, Some(NOTIFY_MULTIPLIER)),
        ] {
            let body = capability(kind, offset, length, more);
            config.add_capability(VENDOR_SPECIFIC, &body, &[]);
        }
        let body = capability(CAP_CONFIG_ACCESS, 0, 0, Some(0));
        let mut writable = [0; ACCESS_DATA - 2];
        writable[ACCESS_BAR - 2] = 0xff;
        writable[ACCESS_OFFSET - 2..].fill(0xff);
        let access_capability = config.add_capability(VENDOR_SPECIFIC, &body, &writable);
        Self {
            name,
            config,
            msix_capability,
            access_capability,
            msix: Msix::new(vectors),
            common: Common::default(),
            isr: 0,
            queues,
            device,
            wiring,
            kick,
            line: false,
            complained: false,
            runs: false,
            renew: false,
        }
    }

    pub(super) fn state(&self) -> VirtioState {
        let queues = self.queues.iter().map(|q| SavedQueue::of(&q.queue, q.vector));
        VirtioState {
            config: self.config.save(),
            msix: self.msix.clone(),
            common: self.common.clone(),
            isr: self.isr,
            queues: queues.collect(),
            device: self.device.state(),
        }
    }

    pub(super) fn restore(&mut self, state: VirtioState) -> Result<(), VirtioStateError> {
        let device = || self.name.clone();
        let (found, expected) = (state.device.section(), self.device.state().section());
        if found != expected {
            return Err(VirtioStateError::Kind { device: device(), found });
        }
        for (what, found, expected) in [
            ("queues", state.queues.len(), self.queues.len()),
            ("interrupt vectors", state.msix.vectors().into(), self.msix.vectors().into()),
        ] {
            if found != expected {
                return Err(VirtioStateError::Count { device: device(), what, found, expected });
            }
        }
        for (index, saved) in state.queues.iter().enumerate() {
            let max_size = self.queues[index].queue.max_size();
            let invalid = |source| VirtioStateError::Queue { device: device(), index, source };
            let queue = saved.queue(max_size).map_err(invalid)?;
            self.queues[index] = VirtQueue { queue, vector: saved.vector };
        }
        self.config.restore(&state.config);
        (self.msix, self.common, self.isr) = (state.msix, state.common, state.isr);
        self.renew = true;
        Ok(())
    }

    /// Starts the device; returns the queues to look at: all that the guest uses, since what it has
    /// notified may not have been acted on. In another process than before, their interrupts may
    /// have been lost, too.
    pub(super) fn start(&mut self) -> u64 {
        self.runs = true;
        let used = self.queues.iter().enumerate().filter(|(_, queue)| queue.queue.ready());
        let used = used.fold(0, |queues, (index, _)| queues | 1 << index);
        let again = std::mem::take(&mut self.renew) && self.common.is_live();
        if again {
            self.queues.iter_mut().for_each(|queue| queue.catch_up(&self.wiring.memory));
        }
        let (used, again) = seam!(device_started(used, again));
        for index in (0..self.queues.len()).filter(|index| again && used & 1 << index != 0) {
            self.interrupt(self.queues[index].vector, ISR_QUEUE);
        }
        used
    }

    fn offered(&self) -> u64 {
        feature::TRANSPORT | self.device.features()
    }

    fn registers(&mut self) -> Registers<'_> {
        let (offered, vectors) = (self.offered(), self.msix.vectors());
        Registers { common: &mut self.common, queues: &mut self.queues, offered, vectors }
    }

    pub(super) fn read(&mut self, offset: u64, data: &mut [u8]) {
        let at = offset % PAGE;
        data.fill(0);
        match offset - at {
            COMMON => self.registers().read(at, data),
            ISR if at == 0 => {
                if let Some(first) = data.first_mut() {
                    *first = std::mem::take(&mut self.isr);
                }
            }
            MSIX_TABLE => self.msix.read_table(at, data),
            MSIX_PENDING => self.msix.read_pending(at, data),
            _ => {}
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let at = offset % PAGE;
        match offset - at {
            COMMON => {
                if let Some(request) = self.registers().write(at, data) {
                    self.act(request);
                }
            }
            MSIX_TABLE => {
                let due = self.msix.write_table(at, data);
                due.into_iter().for_each(|message| self.send(message));
            }
            NOTIFY => {
                if let Some(queue) = notified(offset) {
                    self.kick.queues(1 << queue);
                }
            }
            _ => {}
        }
    }

    fn act(&mut self, request: Request) {
        match request {
            Request::Reset => {
                self.common = Common::default();
                self.isr = 0;
                self.queues.iter_mut().for_each(VirtQueue::reset);
            }
            Request::ResetQueue(index) => self.queues[index].reset(),
            Request::Enable(index) => {
                if !self.queues[index].queue.is_valid(&self.wiring.memory) {
                    self.queues[index].reset();
                    self.fail();
                }
            }
            // A driver may notify queues before it is ready itself.
            Request::Status => self.kick.queues(u64::MAX),
        }
    }

    pub(super) fn write_config(&mut self, at: usize, data: &[u8]) {
        let could = self.may_access_ram();
        self.config.write(at, data);
        if self.may_access_ram() && !could {
            // What the guest has notified meanwhile was not looked at.
            self.kick.queues(u64::MAX);
        }
        let control = self.config.word(self.msix_capability + 2);
        let due = self.msix.set_control(control);
        due.into_iter().for_each(|message| self.send(message));
        if self.is_access_data(at)
            && let Some((offset, length)) = self.indirect_access()
        {
            self.write(offset, &data[..length.min(data.len())]);
        }
    }

    /// Whether a configuration access is one to the BAR (chapter 4.1.4.9).
    pub(super) fn is_access_data(&self, at: usize) -> bool {
        at == self.access_capability + ACCESS_DATA
    }

    /// Returns offset and length of the access to the BAR that the guest has described.
    fn indirect_access(&self) -> Option<(u64, usize)> {
        let at = self.access_capability;
        let bar = self.config.word(at + ACCESS_BAR) & 0xff;
        let offset = u64::from(self.config.dword(at + ACCESS_OFFSET));
        let length = self.config.dword(at + ACCESS_LENGTH) as usize;
        let valid = bar == 0 && matches!(length, 1 | 2 | 4) && offset < BAR_SIZE;
        (valid && offset.is_multiple_of(length as u64)).then_some((offset, length))
    }

    pub(super) fn read_indirectly(&mut self, data: &mut [u8]) {
        data.fill(0);
        if let Some((offset, length)) = self.indirect_access() {
            let length = length.min(data.len());
            self.read(offset, &mut data[..length]);
        }
    }

    fn may_access_ram(&self) -> bool {
        self.config.word(COMMAND) & COMMAND_BUS_MASTER != 0
    }

    /// Whether the guest lets the device handle this queue.
    fn serves(&self, index: usize) -> bool {
        self.queues[index].queue.ready() && self.may_access_ram() && self.common.is_live()
    }

    /// Whether the guest lets the device handle any queue.
    pub(super) fn serves_any(&self) -> bool {
        (0..self.queues.len()).any(|index| self.serves(index))
    }

    /// Handles what is in the `queues`, a bit each.
    pub(super) fn serve(&mut self, queues: u64) {
        for index in 0..self.queues.len() {
            if queues & 1 << index == 0 || !self.serves(index) {
                continue;
            }
            match self.serve_queue(index) {
                Ok(true) => self.interrupt(self.queues[index].vector, ISR_QUEUE),
                Ok(false) => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.complained, true) {
                        let device = &self.name;
                        tracing::warn!(device, queue = index, %error, "device_needs_reset");
                    }
                    self.fail();
                }
            }
        }
    }

    /// Returns whether the guest wants to be interrupted.
    fn serve_queue(&mut self, index: usize) -> Result<bool, QueueError> {
        let Self { queues, device, wiring, kick, .. } = self;
        let (queue, memory) = (&mut queues[index].queue, &wiring.memory);
        queue.disable_notification(memory)?;
        let used = device.process(index, queue, memory)?;
        if queue.enable_notification(memory)? && device.due().is_none() {
            // Later: the lock must not be held for as long as the guest likes.
            kick.queues(1 << index);
        }
        Ok(used && queue.needs_notification(memory)?)
    }

    /// Marks the device as broken until the guest resets it.
    pub(super) fn fail(&mut self) {
        self.common.status |= status::NEEDS_RESET;
        self.interrupt(self.common.config_vector, ISR_CONFIG);
    }

    fn interrupt(&mut self, vector: u16, isr: u8) {
        if !self.msix.is_enabled() {
            self.isr |= isr;
            return self.set_line();
        }
        if vector != NO_VECTOR
            && let Some(message) = self.msix.raise(vector)
        {
            self.send(message);
        }
    }

    fn send(&mut self, Message { address, data }: Message) {
        let [address_lo, address_hi] = [address as u32, (address >> 32) as u32];
        let msi = kvm_msi { address_lo, address_hi, data, ..Default::default() };
        // Not an irqfd, which may still have it in a work queue when the machine is saved.
        if let Err(error) = self.wiring.vm.signal_msi(msi)
            && !std::mem::replace(&mut self.complained, true)
        {
            tracing::warn!(device = self.name, address, data, %error, "interrupt_failed");
        }
    }

    pub(super) fn set_line(&mut self) {
        let pending = self.isr != 0;
        let allowed = self.config.word(COMMAND) & COMMAND_NO_INTX == 0 && !self.msix.is_enabled();
        self.config.show_intx(pending);
        if self.line != (pending && allowed) {
            self.line = !self.line;
            self.wiring.intx.set(self.line);
        }
    }
}

/// The body of one of virtio's capabilities, behind ID and next pointer; `more` follows it.
fn capability(kind: u8, offset: u64, length: u64, more: Option<u32>) -> Vec<u8> {
    let size = if more.is_some() { 20 } else { 16 };
    let mut body = vec![size, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((length as u32).to_le_bytes());
    body.extend(more.map(u32::to_le_bytes).into_iter().flatten());
    body
}

#[cfg(test)]
mod tests;
