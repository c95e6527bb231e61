//! The thread of a vCPU: its run loop and how it handles requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use kvm_ioctls::VcpuExit;

use super::access::Access;
use super::events::{EventSink, GuestEvent, GuestEventKind};
use super::exit::{PortAccess, port_access};
use super::kick::Kickable;
use super::request::{Request, VcpuStart};
use super::settle;
use super::shared::VcpuShared;
use super::state::VcpuState;
use super::state_error::StateError;

/// A vCPU, on its thread.
pub(super) struct Vcpu {
    start: VcpuStart,
    inbox: Receiver<Request>,
    kicked: Arc<AtomicBool>,
    /// The last exit was a port or MMIO access, which KVM completes at the next `KVM_RUN`.
    unfinished: bool,
    shared: Arc<VcpuShared>,
}

/// Marks the vCPU's thread as ended, and so not in the guest, when dropped.
struct EndGuard(Arc<VcpuShared>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.end();
    }
}

enum Next {
    Run,
    Stand,
    End,
}

/// Reports a panic of the thread that holds it to the machine: nothing else would notice.
struct PanicReport {
    vcpu: u8,
    events: EventSink,
}

impl Drop for PanicReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kind = GuestEventKind::Failed("its thread panicked".to_owned());
            self.events.send(GuestEvent { vcpu: self.vcpu, kind });
        }
    }
}

impl Vcpu {
    pub(super) fn new(
        start: VcpuStart,
        inbox: Receiver<Request>,
        kicked: Arc<AtomicBool>,
        shared: Arc<VcpuShared>,
    ) -> Self {
        Self { start, inbox, kicked, unfinished: false, shared }
    }

    /// Runs until told to quit. If there is state to load, sends the result on `loaded` first.
    pub(super) fn main(mut self, loaded: Sender<Result<(), StateError>>) {
        let _report = PanicReport { vcpu: self.start.index, events: self.start.events.clone() };
        let kickable = Kickable::new(self.start.fd.get_kvm_run());
        self.shared.set_current_thread();
        self.shared.mark_active_or_park();
        let _out = EndGuard(self.shared.clone());
        if let Some(state) = self.start.restore.take()
            && loaded.send(self.access().restore(&state)).is_err()
        {
            return;
        }
        let mut running = false;
        loop {
            let request = if !running {
                self.shared.mark_outside();
                let request = self.inbox.recv();
                self.shared.mark_active_or_park();
                match request {
                    Ok(request) => Some(request),
                    Err(_) => return,
                }
            } else if self.kicked.swap(false, Ordering::Acquire) {
                let request = self.inbox.try_recv().ok();
                if request.is_some() {
                    // More requests may be queued.
                    self.kicked.store(true, Ordering::Release);
                }
                request
            } else {
                None
            };
            let next = match request {
                Some(request) => self.handle_request(request, running, &kickable),
                None => self.run_once(&kickable),
            };
            match next {
                Next::Run => running = true,
                Next::Stand => running = false,
                Next::End => return,
            }
        }
    }

    fn access(&self) -> Access<'_> {
        Access {
            index: self.start.index,
            fd: &self.start.fd,
            capabilities: &self.start.capabilities,
        }
    }

    fn handle_request(&mut self, request: Request, running: bool, kickable: &Kickable) -> Next {
        match request {
            Request::Run => {
                self.note_pause_to_guest();
                Next::Run
            }
            Request::Quit => Next::End,
            Request::Pause(answer) => {
                // No seam: nothing but the answer tells that the vCPU has stopped.
                if planted!(DeafVcpu) {
                    std::mem::forget(answer);
                    return Next::Stand;
                }
                self.finish_access(kickable);
                // The machine that asked may have given up waiting.
                let _ = answer.send(Ok(()));
                Next::Stand
            }
            Request::Save(answer) => {
                let _ = answer.send(self.save(kickable));
                if running { Next::Run } else { Next::Stand }
            }
            Request::Nmi(answer) => {
                let _ = answer.send(self.access().inject_nmi());
                if running { Next::Run } else { Next::Stand }
            }
        }
    }

    /// Saves everything. The guest executes nothing, but a due interrupt may arrive.
    fn save(&mut self, kickable: &Kickable) -> Result<VcpuState, StateError> {
        let VcpuStart { index, fd, capabilities, .. } = &mut self.start;
        settle::save(*index, fd, capabilities, kickable)
    }

    /// Runs with `immediate_exit` until KVM has nothing left to complete (KVM API 4.10, note).
    fn finish_access(&mut self, kickable: &Kickable) {
        // No seam: only KVM_RUN completes the access, and no saved state shows that it was not.
        if planted!(HalfDoneAccess) {
            return;
        }
        while self.unfinished {
            kickable.set(true);
            self.run_once(kickable);
        }
    }

    /// Tells a guest with a paravirtual clock about the pause, so that it does not report a lockup
    /// (`KVM_KVMCLOCK_CTRL`, KVM API 4.74). Done on resume, not on pause: until the vCPU runs, KVM
    /// keeps the flag where no ioctl reads it, and an update would lose it.
    fn note_pause_to_guest(&self) {
        // No seam: the ioctl sets a flag that no state contains.
        if planted!(NoKvmclockCtrl) {
            return;
        }
        match self.start.fd.kvmclock_ctrl() {
            Ok(()) => {}
            // The guest does not use a paravirtual clock.
            Err(error) if error.errno() == libc::EINVAL => {}
            Err(error) => tracing::debug!(vcpu = self.start.index, %error, "kvmclock_ctrl_failed"),
        }
    }

    fn run_once(&mut self, kickable: &Kickable) -> Next {
        self.shared.enter();
        let result = self.start.fd.run();
        let access = &self.shared.access;
        let outcome = match result {
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => Outcome::Port,
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.start.bus.mmio_read(address, data, access);
                access.item_done();
                Outcome::Mmio
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.start.bus.mmio_write(address, data, access);
                access.item_done();
                Outcome::Mmio
            }
            Ok(VcpuExit::Shutdown) => Outcome::Event(GuestEventKind::TripleFault { rip: 0 }),
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => Outcome::Nothing,
            Ok(VcpuExit::InternalError) => Outcome::InternalError,
            Ok(exit) => Outcome::Event(GuestEventKind::Failed(format!("{exit:?}"))),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Outcome::Nothing,
            Err(error) => Outcome::Event(GuestEventKind::Failed(format!("KVM_RUN: {error}"))),
        };
        // No seam: the flag is in the page that this thread shares with KVM.
        if !planted!(KeepImmediateExit) {
            kickable.set(false);
        }
        self.unfinished = matches!(outcome, Outcome::Port | Outcome::Mmio);
        let event = match outcome {
            Outcome::Nothing | Outcome::Mmio => None,
            Outcome::Port => self.port(),
            Outcome::InternalError => {
                // SAFETY: the exit reason says that KVM filled this member of the union.
                let suberror =
                    unsafe { self.start.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
                let rip = self.rip();
                Some(GuestEventKind::Failed(format!(
                    "KVM_EXIT_INTERNAL_ERROR, suberror {suberror}, rip {rip:#x}"
                )))
            }
            Outcome::Event(GuestEventKind::TripleFault { .. }) => {
                Some(GuestEventKind::TripleFault { rip: self.rip() })
            }
            Outcome::Event(event) => Some(event),
        };
        match event {
            None => Next::Run,
            Some(kind) => {
                self.shared.record_event(&kind);
                self.finish_quietly(kickable);
                self.start.events.send(GuestEvent { vcpu: self.start.index, kind });
                Next::Stand
            }
        }
    }

    /// Completes the access that caused an event, so that the vCPU stops after it, not in it.
    fn finish_quietly(&mut self, kickable: &Kickable) {
        if self.unfinished {
            kickable.set(true);
            self.shared.enter();
            let _ = self.start.fd.run();
            kickable.set(false);
            self.unfinished = false;
        }
    }

    fn rip(&self) -> u64 {
        self.start.fd.get_regs().map_or(0, |regs| regs.rip)
    }

    fn port(&mut self) -> Option<GuestEventKind> {
        let PortAccess { port, size, is_in, data } = port_access(self.start.fd.get_kvm_run());
        let (bus, access) = (&self.start.bus, &self.shared.access);
        let mut event = None;
        let size = size.max(1);
        if is_in {
            access.handle_at_once((data.len() / size) as u32);
            bus.read(port, size, data, access);
            access.item_done();
            return None;
        }
        for item in data.chunks_exact(size) {
            if let Some(request) = bus.write(port, item, access) {
                let kind = GuestEventKind::Device(request);
                // Recorded before the item is done: a done item is not repeated.
                self.shared.record_event(&kind);
                event = event.or(Some(kind));
            }
            access.item_done();
        }
        event
    }
}

enum Outcome {
    Nothing,
    Port,
    Mmio,
    InternalError,
    Event(GuestEventKind),
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs};
    use kvm_ioctls::Kvm;
    use nix::sys::eventfd::EventFd;
    use vm_memory::{Bytes, GuestAddress};

    use super::super::{StateCapabilities, VcpuHandle, install_kick_handler};
    use super::*;
    use crate::devices::serial::{SerialConfig, SerialHost, SerialPort};
    use crate::devices::{Board, PortBus};
    use crate::memory::{MemoryConfig, PageKind, RamBlock};

    #[test]
    fn kvmclock_guest_is_told_of_the_pause_on_resume() {
        const CODE: u64 = 0x1000;
        const CLOCK: u64 = 0x2000;
        const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
        const ENABLE: u64 = 1;
        // `struct pvclock_vcpu_time_info`: its version, and its flags with PVCLOCK_GUEST_STOPPED.
        const FLAGS: u64 = 29;
        const STOPPED: u8 = 2;
        let memory = MemoryConfig { size: 4 << 20, share: true, pages: PageKind::Small };
        let ram = RamBlock::create(memory).unwrap();
        // hlt
        ram.memory().write_obj(0xf4_u8, GuestAddress(CODE)).unwrap();
        let kvm = Kvm::new().unwrap();
        let vm = Arc::new(kvm.create_vm().unwrap());
        ram.register(&vm).unwrap();
        vm.create_irq_chip().unwrap();
        let fd = vm.create_vcpu(0).unwrap();
        fd.set_cpuid2(&crate::vcpu::cpuid_for(&kvm, 0, 1).unwrap()).unwrap();
        let mut sregs = fd.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        fd.set_sregs(&sregs).unwrap();
        fd.set_regs(&kvm_regs { rip: CODE, rflags: 2, ..Default::default() }).unwrap();
        let clock = kvm_msr_entry {
            index: MSR_KVM_SYSTEM_TIME_NEW,
            data: CLOCK | ENABLE,
            ..Default::default()
        };
        assert_eq!(fd.set_msrs(&Msrs::from_entries(&[clock]).unwrap()), Ok(1));
        let capabilities = Arc::new(StateCapabilities::ask(&kvm, &vm, &fd, None).unwrap());
        let wake = Arc::new(EventFd::new().unwrap());
        let null = SerialHost::open(&SerialConfig::Null, None, &mut |_| None).unwrap();
        let serial = SerialPort::new(vm.clone(), wake.clone(), null, &Default::default()).unwrap();
        let board = Board::new(Default::default(), vm.clone(), wake.clone());
        let bus = Arc::new(PortBus::new(serial, Default::default(), board, vm.clone()));
        let (queue, _events) = channel();
        let events = EventSink::new(queue, wake);
        install_kick_handler().unwrap();
        let start = VcpuStart { index: 0, fd, capabilities, bus, events, restore: None };
        let vcpu = VcpuHandle::spawn(start).unwrap();
        // As after an update: this vCPU has not been paused.
        vcpu.run();
        let until = Instant::now() + Duration::from_secs(30);
        let version = || ram.memory().read_obj::<u32>(GuestAddress(CLOCK)).unwrap();
        while version() == 0 || version() % 2 == 1 {
            assert!(Instant::now() < until, "the clock was never written");
            std::thread::yield_now();
        }
        let flags: u8 = ram.memory().read_obj(GuestAddress(CLOCK + FLAGS)).unwrap();
        assert_eq!(flags & STOPPED, STOPPED);
    }

    #[test]
    fn thread_panic_sends_an_event() {
        let (queue, inbox) = channel();
        let events = EventSink::new(queue, Arc::new(EventFd::new().unwrap()));
        let report = PanicReport { vcpu: 3, events: events.clone() };
        let thread = std::thread::spawn(move || {
            let _report = report;
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        let kind = GuestEventKind::Failed("its thread panicked".to_owned());
        assert_eq!(inbox.try_recv(), Ok(GuestEvent { vcpu: 3, kind }));
        drop(PanicReport { vcpu: 3, events });
        assert!(inbox.try_recv().is_err());
    }
}
