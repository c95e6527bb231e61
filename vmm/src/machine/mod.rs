//! One VM: assembly, run state, pause and resume, save and restore in order.

mod assembly;
#[cfg(feature = "failpoints")]
mod delayed_steps;
mod dirty;
mod error;
#[cfg(test)]
mod golden;
mod inject;
#[cfg(feature = "failpoints")]
pub mod irqfd;
#[cfg(feature = "failpoints")]
pub mod kvm_fds;
pub mod order;
pub mod salvage;
pub mod salvaged;
mod state;

use std::cell::Cell;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use cpr_qmp::run_state::RunState;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::{Kvm, VmFd};
use nix::sys::eventfd::{EfdFlags, EventFd};

pub use error::{MachineError, TooOld};
pub use state::{RestoredState, SECTIONS};

use crate::boot::BootImage;
use crate::devices::serial::SerialHost;
use crate::devices::{BoardState, DeviceOption, DeviceRequest, PortBus};
use crate::memory::{MemoryConfig, RamBlock};
use crate::vcpu::{
    EventSink, GuestEvent, GuestEventKind, PauseError, StateCapabilities, VcpuHandle,
};

/// Deadline for a vCPU to leave the guest or to save itself. On a host that emulates CPL0 an exit
/// can take long, but never this long.
const VCPU_DEADLINE: Duration = Duration::from_secs(10);

/// The configuration of a machine.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// RAM.
    pub memory: MemoryConfig,
    /// Number of vCPUs.
    pub cpus: u8,
    /// The guest's command line.
    pub cmdline: String,
    /// Whether it has the test device.
    pub test_device: bool,
    /// The devices behind PCI, in the order of their slots.
    pub devices: Vec<DeviceOption>,
}

/// The part of a machine that lives in KVM, and is rebuilt by a reset and by an update.
#[derive(Debug)]
struct KvmPart {
    // Field order is drop order: the threads end before the VM is closed.
    vcpus: Vec<VcpuHandle>,
    bus: Arc<PortBus>,
    capabilities: Arc<StateCapabilities>,
    /// The CPUID of each vCPU.
    cpuids: Vec<Vec<kvm_cpuid_entry2>>,
    vm: Arc<VmFd>,
    /// Whether KVM logs the pages that the guest writes.
    logs_dirty_pages: Cell<bool>,
    #[cfg(feature = "failpoints")]
    delayed_steps: Option<delayed_steps::DelayedSteps>,
}

/// One VM.
#[derive(Debug)]
pub struct Machine {
    // Before `ram`: KVM must not outlive the mapping that its memslots point to.
    kvm_part: Option<KvmPart>,
    /// The VM that [`Machine::build_ahead`] has built for a state that has not arrived yet.
    skeleton: Option<assembly::Skeleton>,
    kvm: Kvm,
    ram: RamBlock,
    image: Option<BootImage>,
    config: MachineConfig,
    run_state: RunState,
    events: EventSink,
    inbox: Receiver<GuestEvent>,
    /// Events received and not yet handled.
    pending: Vec<GuestEvent>,
    wake: Arc<EventFd>,
    /// For a planted bug: the devices as they were before the vCPUs were paused.
    #[cfg(feature = "failpoints")]
    early_devices: std::cell::RefCell<Option<crate::devices::DevicesState>>,
    #[cfg(feature = "failpoints")]
    irqfd: irqfd::Irqfd,
}

impl Machine {
    /// Creates the parts that outlive the KVM part, which [`Machine::boot`] or [`Machine::restore`]
    /// adds. `kvm` is `/dev/kvm` if it is already open.
    pub fn new(
        config: MachineConfig,
        ram: RamBlock,
        image: Option<BootImage>,
        kvm: Option<OwnedFd>,
    ) -> Result<Self, MachineError> {
        let kvm = match kvm {
            // SAFETY: its owner gave it up; if it is not KVM's, the first ioctl fails.
            Some(fd) => unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) },
            None => {
                Kvm::new().map_err(|source| MachineError::Kvm { what: "open /dev/kvm", source })?
            }
        };
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_value_and_flags(0, flags)
            .map_err(|errno| system("eventfd")(errno.into()))?;
        let wake = Arc::new(wake);
        let (queue, inbox) = channel();
        Ok(Self {
            kvm_part: None,
            skeleton: None,
            kvm,
            ram,
            image,
            config,
            run_state: RunState::Prelaunch,
            events: EventSink::new(queue, wake.clone()),
            inbox,
            pending: Vec::new(),
            wake,
            #[cfg(feature = "failpoints")]
            early_devices: Default::default(),
            #[cfg(feature = "failpoints")]
            irqfd: irqfd::Irqfd::open(None).map_err(|errno| system("eventfd")(errno.into()))?,
        })
    }

    /// Assembles a machine as after power-on; the vCPUs wait for [`Machine::resume`].
    pub fn boot(&mut self, host: SerialHost) -> Result<(), MachineError> {
        self.boot_with(host, BoardState::default())
    }

    fn boot_with(&mut self, host: SerialHost, board: BoardState) -> Result<(), MachineError> {
        self.kvm_part = Some(assembly::power_on(self, host, board)?);
        self.connect_irqfd();
        Ok(())
    }

    /// Assembles a complete machine that runs nothing, calling `before` with each step: RAM is not
    /// touched, and no kernel is needed.
    pub fn rehearse(
        &mut self,
        host: SerialHost,
        before: &mut dyn FnMut(order::Step),
    ) -> Result<(), MachineError> {
        self.kvm_part = Some(assembly::rehearsed(self, host, before)?);
        self.connect_irqfd();
        Ok(())
    }

    /// Adopts an irqfd that was handed over.
    #[cfg(feature = "failpoints")]
    pub fn adopt_irqfd(&mut self, fd: Option<OwnedFd>) -> Result<(), MachineError> {
        if fd.is_some() {
            self.irqfd = irqfd::Irqfd::open(fd).map_err(|errno| system("eventfd")(errno.into()))?;
        }
        Ok(())
    }

    /// Restarts the guest: RAM and the battery-backed clock keep their content, everything else is
    /// as after power-on.
    ///
    /// The run state stays; on an error the machine is left without vCPUs and cannot run.
    pub fn reset(&mut self) -> Result<(), MachineError> {
        self.pending.clear();
        let Some(old) = self.kvm_part.take() else { return Ok(()) };
        let KvmPart { vcpus, bus, capabilities, vm, .. } = old;
        drop(vcpus);
        let lasting = Arc::into_inner(bus).map(PortBus::into_lasting);
        drop((capabilities, vm));
        self.drain_events();
        self.pending.clear();
        let (host, board) =
            lasting.expect("the vCPU threads held the other references and have ended");
        self.boot_with(host, board)?;
        if self.run_state.is_running() {
            self.start_vcpus();
        }
        Ok(())
    }

    /// Adopts the RAM and the boot image of a guest that another process still runs.
    pub fn adopt(&mut self, ram: RamBlock, image: Option<BootImage>) {
        debug_assert!(self.kvm_part.is_none() && self.skeleton.is_none());
        (self.ram, self.image) = (ram, image);
    }

    /// Gives up a guest that another process runs, and everything that it consists of. The serial
    /// port's socket file stays if that process uses it, as `serial_moves` says.
    pub fn give_up(&mut self, serial_moves: bool) {
        debug_assert!(!self.run_state.is_running());
        let Some(KvmPart { vcpus, bus, .. }) = self.kvm_part.take() else { return };
        drop(vcpus);
        if serial_moves {
            bus.serial().host_mut().disown_socket_file();
        }
        drop(bus);
        self.drain_events();
        self.pending.clear();
        (self.ram, self.image) = (RamBlock::elsewhere(self.config.memory), None);
    }

    /// The machine's configuration.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// RAM.
    pub fn ram(&self) -> &RamBlock {
        &self.ram
    }

    /// `/dev/kvm`.
    pub fn kvm_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `kvm` keeps it open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.kvm.as_raw_fd()) }
    }

    /// The VM's descriptor, which is of no use to another process image.
    #[cfg(feature = "failpoints")]
    pub fn vm_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: `vm` keeps it open for as long as `self` is borrowed.
        self.kvm_part.as_ref().map(|p| unsafe { BorrowedFd::borrow_raw(p.vm.as_raw_fd()) })
    }

    /// The boot image.
    pub fn image(&self) -> Option<&BootImage> {
        self.image.as_ref()
    }

    /// The devices; `None` before the machine is assembled.
    pub fn bus(&self) -> Option<&Arc<PortBus>> {
        self.kvm_part.as_ref().map(|part| &part.bus)
    }

    /// Whether the guest runs, and if not, why.
    pub fn run_state(&self) -> RunState {
        self.run_state
    }

    /// Sets a run state that requires no vCPU to start or stop.
    pub fn set_run_state(&mut self, state: RunState) {
        debug_assert!(!state.is_running() && !self.run_state.is_running());
        self.run_state = state;
    }

    /// Becomes readable when [`Machine::next_event`] may have something.
    pub fn wake(&self) -> &Arc<EventFd> {
        &self.wake
    }

    /// Queues events again that a previous process had received but not handled.
    pub fn put_back_events(&mut self, events: Vec<GuestEvent>) {
        if !events.is_empty() {
            self.pending.extend(events);
            // The counter can only be full if a wake-up is coming anyway.
            let _ = self.wake.write(1);
        }
    }

    /// Raises the real-time clock's interrupt if it is due and the guest runs.
    pub fn service_clock(&self) {
        if let (true, Some(bus)) = (self.run_state.is_running(), self.bus()) {
            bus.service_clock();
        }
    }

    /// Returns the time until the real-time clock's next interrupt; `None` while the guest is
    /// stopped.
    pub fn next_clock_interrupt(&self) -> Option<Duration> {
        self.bus().filter(|_| self.run_state.is_running())?.next_clock_interrupt()
    }

    fn drain_events(&mut self) {
        self.pending.extend(self.inbox.try_iter());
    }

    /// Takes the next unhandled event. Take one at a time: handling one can replace the machine
    /// that the others belong to. An event that is not `admitted` stays.
    pub fn next_event(&mut self, admitted: impl FnOnce(&GuestEvent) -> bool) -> Option<GuestEvent> {
        // EAGAIN: nothing has been written; the queue is what counts.
        let _ = self.wake.read();
        self.drain_events();
        let first = first_event(&self.pending)?;
        admitted(&self.pending[first]).then(|| self.pending.remove(first))
    }

    /// Collects the events so far, for [`Machine::unhandled_events`].
    pub fn collect_events(&mut self) {
        self.drain_events();
    }

    /// Returns the collected events that are not yet handled, without taking them.
    pub fn unhandled_events(&self) -> Vec<GuestEvent> {
        self.pending.clone()
    }

    /// Returns a hash of the MSRs that the list to save was chosen from; `None` if an earlier
    /// binary chose it, and this one has not searched yet.
    pub fn msr_choice(&self) -> Option<u64> {
        self.kvm_part.as_ref()?.capabilities.msr_choice(&self.kvm)
    }

    /// Records the hash of the MSRs that the loaded state's MSRs were chosen from.
    pub fn msrs_were_chosen_from(&self, choice: Option<u64>) {
        if let Some(part) = &self.kvm_part {
            part.capabilities.msrs_were_chosen_from(choice, &self.kvm);
        }
    }

    /// Searches for more MSRs to save, before an update and while the guest runs: after an update
    /// from a binary that knows other MSRs, only those of its saved state are known. Takes about
    /// 20 ms once, and seconds on a busy host. Without it, the same MSRs are saved again.
    pub fn probe_missing_msrs(&self) {
        if let Some(part) = &self.kvm_part
            && let Err(error) = part.capabilities.probe_missing_msrs(&self.kvm)
        {
            tracing::warn!(%error, "msrs_as_before");
        }
    }

    fn vcpus(&self) -> &[VcpuHandle] {
        self.kvm_part.as_ref().map_or(&[], |part| &part.vcpus)
    }

    fn start_vcpus(&self) {
        self.bus().iter().for_each(|bus| bus.start());
        for (index, vcpu) in (0..).zip(self.vcpus()) {
            if !self.pending.iter().any(|event| event.vcpu == index) {
                vcpu.run();
            }
        }
    }

    /// The thread ID of each vCPU.
    pub fn vcpu_threads(&self) -> Vec<i32> {
        self.vcpus().iter().map(VcpuHandle::thread_id).collect()
    }

    /// Lets the guest run. A vCPU with an unhandled event stays stopped.
    pub fn resume(&mut self) {
        self.drain_events();
        self.start_vcpus();
        self.run_state = RunState::Running;
        #[cfg(feature = "failpoints")]
        if let Some(part) = &mut self.kvm_part
            && let Some(delayed_steps) = part.delayed_steps.take()
            && let Err(error) = delayed_steps.carry_out(&part.vm)
        {
            tracing::warn!(%error, "planted");
        }
    }

    /// Gets every vCPU out of the guest. On an error, those that had left it run again.
    pub fn pause(&mut self, state: RunState) -> Result<(), MachineError> {
        // No seam: the devices must be read while the vCPUs still write to them.
        #[cfg(feature = "failpoints")]
        if planted!(DevicesFirst) {
            *self.early_devices.borrow_mut() = self.bus().map(|bus| bus.state());
        }
        let until = Instant::now() + VCPU_DEADLINE;
        let pausing: Vec<_> = self.vcpus().iter().map(VcpuHandle::request_pause).collect();
        for vcpu in pausing {
            match vcpu.wait(until) {
                Ok(()) => {}
                // It is stopped for good; the event that it sent says why.
                Err(error @ PauseError::Gone(_)) => tracing::warn!(%error, "vcpu_gone"),
                Err(error) => {
                    self.resume();
                    return Err(error.into());
                }
            }
        }
        // Last: until then, the vCPUs have work for them.
        self.bus().iter().for_each(|bus| bus.quiesce());
        self.run_state = state;
        Ok(())
    }
}

/// Returns the index of the oldest event, but prefers the end: a concurrent reset would undo it.
fn first_event(pending: &[GuestEvent]) -> Option<usize> {
    let ends = |event: &GuestEvent| {
        use DeviceRequest::{Exit, PowerOff};
        matches!(event.kind, GuestEventKind::Device(Exit(_) | PowerOff))
    };
    pending.iter().position(ends).or((!pending.is_empty()).then_some(0))
}

fn system(what: &'static str) -> impl Fn(std::io::Error) -> MachineError {
    move |source| MachineError::System { what, source }
}

fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_but_the_end_comes_first() {
        let event = |vcpu, kind| GuestEvent { vcpu, kind };
        let reset = |vcpu| event(vcpu, GuestEventKind::Device(DeviceRequest::Reset));
        for end in [DeviceRequest::Exit(3), DeviceRequest::PowerOff] {
            let end = event(2, GuestEventKind::Device(end));
            let mut pending = vec![reset(0), reset(1), end.clone()];
            let order: Vec<_> =
                std::iter::from_fn(|| Some(pending.remove(first_event(&pending)?))).collect();
            assert_eq!(order, [end, reset(0), reset(1)]);
        }
    }
}
