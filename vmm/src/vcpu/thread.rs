//! One vCPU, its thread, and the requests it obeys.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::sys::eventfd::EventFd;
use serde::{Deserialize, Serialize};

use super::exit::port_access;
use super::kick::{Kickable, kick};
use super::state::{Access, StateCapabilities, StateError, VcpuState};
use crate::devices::{DeviceRequest, PortBus};

/// Something a vCPU met that the machine must deal with. The vCPU stands still since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestEvent {
    /// The vCPU.
    pub vcpu: u8,
    /// What it met.
    pub kind: GuestEventKind,
}

/// See [`GuestEvent`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestEventKind {
    /// A device asks.
    Device(DeviceRequest),
    /// A triple fault (`KVM_EXIT_SHUTDOWN`).
    TripleFault {
        /// Where; 0 where KVM did not say.
        rip: u64,
    },
    /// KVM cannot go on.
    Failed(String),
}

/// Where guest events go: a queue, and a descriptor that becomes readable.
#[derive(Clone, Debug)]
pub struct EventSink {
    queue: Sender<GuestEvent>,
    wake: Arc<EventFd>,
}

impl EventSink {
    /// Events go to `queue`; `wake` is written after each.
    pub fn new(queue: Sender<GuestEvent>, wake: Arc<EventFd>) -> Self {
        Self { queue, wake }
    }

    fn send(&self, event: GuestEvent) {
        // Without a receiver the machine is being taken down, and nobody needs the event.
        if self.queue.send(event).is_ok() {
            let _ = self.wake.write(1);
        }
    }
}

/// Each request that is answered carries a channel of its own: an answer that comes too late must
/// not be taken for that of a later request.
enum Request {
    Pause(Sender<Result<(), StateError>>),
    Run,
    Save(Sender<Result<VcpuState, StateError>>),
    Quit,
}

/// What a vCPU's thread starts with.
pub struct VcpuStart {
    /// Index and APIC ID.
    pub index: u8,
    /// Its descriptor.
    pub fd: VcpuFd,
    /// What KVM offers.
    pub capabilities: Arc<StateCapabilities>,
    /// The devices.
    pub bus: Arc<PortBus>,
    /// Where events go.
    pub events: EventSink,
    /// State to load first; without it the vCPU is ready as it is.
    pub restore: Option<Box<VcpuState>>,
}

/// The machine's end of a vCPU's thread. It starts paused. Dropping it ends the thread.
#[derive(Debug)]
pub struct VcpuHandle {
    index: u8,
    requests: Sender<Request>,
    ready: Answer<()>,
    kicked: Arc<AtomicBool>,
    thread_id: Arc<OnceLock<i32>>,
    thread: Option<JoinHandle<()>>,
}

/// Why a vCPU does not obey.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// It did not answer in time.
    #[error("vCPU {vcpu} did not {what} within {waited:?}")]
    Deadline {
        /// The vCPU.
        vcpu: u8,
        /// What it was asked for.
        what: &'static str,
        /// How long it had.
        waited: Duration,
    },
    /// Its thread is gone.
    #[error("the thread of vCPU {0} has ended")]
    Gone(u8),
    /// Its state could not be read or written.
    #[error(transparent)]
    State(#[from] StateError),
}

impl VcpuHandle {
    /// Starts the thread; the vCPU waits for [`VcpuHandle::run`].
    pub fn spawn(start: VcpuStart) -> std::io::Result<Self> {
        let (requests, inbox) = channel();
        let (loaded, receiver) = channel();
        let kicked = Arc::new(AtomicBool::new(false));
        let index = start.index;
        let thread_id = Arc::new(OnceLock::new());
        let thread = {
            let (kicked, thread_id) = (kicked.clone(), thread_id.clone());
            std::thread::Builder::new().name(format!("vcpu{index}")).spawn(move || {
                thread_id.get_or_init(|| nix::unistd::gettid().as_raw());
                Vcpu { start, inbox, kicked, unfinished: false }.main(loaded);
            })?
        };
        let ready = Answer { vcpu: index, what: "load its state", receiver };
        Ok(Self { index, requests, ready, kicked, thread_id, thread: Some(thread) })
    }

    /// The thread's ID.
    pub fn thread_id(&self) -> i32 {
        *self.thread_id.wait()
    }

    fn send(&self, request: Request) {
        // A thread that is gone is found out by whoever waits for its answer.
        let _ = self.requests.send(request);
    }

    /// For requests that must get the thread out of the guest; others find it waiting.
    fn send_and_kick(&self, request: Request) {
        self.send(request);
        self.kicked.store(true, Ordering::Release);
        if let Some(thread) = &self.thread {
            kick(thread);
        }
    }

    /// Waits until the state given at the start is loaded.
    pub fn wait_ready(&self, until: Instant) -> Result<(), PauseError> {
        self.ready.wait(until)
    }

    /// Asks the vCPU to leave `KVM_RUN` and to finish a port or MMIO access that is half done.
    pub fn request_pause(&self) -> Answer<()> {
        let (answer, receiver) = channel();
        self.send_and_kick(Request::Pause(answer));
        Answer { vcpu: self.index, what: "leave the guest", receiver }
    }

    /// Lets the guest run.
    pub fn run(&self) {
        self.send(Request::Run);
    }

    /// Asks for the state of a paused vCPU.
    pub fn request_save(&self) -> Answer<VcpuState> {
        let (answer, receiver) = channel();
        self.send(Request::Save(answer));
        Answer { vcpu: self.index, what: "save its state", receiver }
    }
}

/// What a vCPU was asked for, on its way.
#[derive(Debug)]
pub struct Answer<T> {
    vcpu: u8,
    what: &'static str,
    receiver: Receiver<Result<T, StateError>>,
}

impl<T> Answer<T> {
    /// Waits for it.
    pub fn wait(&self, until: Instant) -> Result<T, PauseError> {
        let (vcpu, what) = (self.vcpu, self.what);
        let waited = until.saturating_duration_since(Instant::now());
        match self.receiver.recv_timeout(waited) {
            Ok(result) => Ok(result?),
            Err(RecvTimeoutError::Timeout) => Err(PauseError::Deadline { vcpu, what, waited }),
            Err(RecvTimeoutError::Disconnected) => Err(PauseError::Gone(vcpu)),
        }
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        self.send_and_kick(Request::Quit);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed; there is nothing more to do about it.
            let _ = thread.join();
        }
    }
}

struct Vcpu {
    start: VcpuStart,
    inbox: Receiver<Request>,
    kicked: Arc<AtomicBool>,
    /// The last exit was a port or MMIO access, which KVM completes at the next `KVM_RUN`.
    unfinished: bool,
}

enum Next {
    Run,
    Stand,
    End,
}

/// Tells the machine when the thread that holds it panics: nobody else would notice.
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
    fn main(mut self, loaded: Sender<Result<(), StateError>>) {
        let _report = PanicReport { vcpu: self.start.index, events: self.start.events.clone() };
        let kickable = Kickable::new(self.start.fd.get_kvm_run());
        if let Some(state) = self.start.restore.take()
            && loaded.send(self.access().restore(&state)).is_err()
        {
            return;
        }
        let mut running = false;
        loop {
            let request = if !running {
                match self.inbox.recv() {
                    Ok(request) => Some(request),
                    Err(_) => return,
                }
            } else if self.kicked.swap(false, Ordering::Acquire) {
                let request = self.inbox.try_recv().ok();
                if request.is_some() {
                    // There may be more behind it.
                    self.kicked.store(true, Ordering::Release);
                }
                request
            } else {
                None
            };
            let next = match request {
                Some(request) => self.obey(request, running, &kickable),
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

    fn obey(&mut self, request: Request, running: bool, kickable: &Kickable) -> Next {
        match request {
            Request::Run => {
                self.note_pause_to_guest();
                Next::Run
            }
            Request::Quit => Next::End,
            Request::Pause(answer) => {
                self.finish_access(kickable);
                // The machine that asked may have given up waiting.
                let _ = answer.send(Ok(()));
                Next::Stand
            }
            Request::Save(answer) => {
                let _ = answer.send(self.access().save());
                if running { Next::Run } else { Next::Stand }
            }
        }
    }

    /// Runs with `immediate_exit` until KVM has nothing left to complete (KVM API 4.10, note).
    fn finish_access(&mut self, kickable: &Kickable) {
        while self.unfinished {
            kickable.set(true);
            self.run_once(kickable);
        }
    }

    /// A guest with a paravirtual clock must not take the pause for a lockup of its own
    /// (`KVM_KVMCLOCK_CTRL`, KVM API 4.74). When it goes on and not when it stops: until the vCPU
    /// runs, KVM keeps that where no ioctl reads it, and an update would lose it.
    fn note_pause_to_guest(&self) {
        match self.start.fd.kvmclock_ctrl() {
            Ok(()) => {}
            // The guest uses no such clock.
            Err(error) if error.errno() == libc::EINVAL => {}
            Err(error) => tracing::debug!(vcpu = self.start.index, %error, "kvmclock_ctrl_failed"),
        }
    }

    fn run_once(&mut self, kickable: &Kickable) -> Next {
        let result = self.start.fd.run();
        let outcome = match result {
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => Outcome::Port,
            Ok(VcpuExit::MmioRead(_, data)) => {
                data.fill(0xff);
                Outcome::Mmio
            }
            Ok(VcpuExit::MmioWrite(..)) => Outcome::Mmio,
            Ok(VcpuExit::Shutdown) => Outcome::Event(GuestEventKind::TripleFault { rip: 0 }),
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => Outcome::Nothing,
            Ok(VcpuExit::InternalError) => Outcome::InternalError,
            Ok(exit) => Outcome::Event(GuestEventKind::Failed(format!("{exit:?}"))),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Outcome::Nothing,
            Err(error) => Outcome::Event(GuestEventKind::Failed(format!("KVM_RUN: {error}"))),
        };
        kickable.set(false);
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
                self.finish_quietly(kickable);
                self.start.events.send(GuestEvent { vcpu: self.start.index, kind });
                Next::Stand
            }
        }
    }

    /// Completes the access that led to an event, so that the vCPU stands after it, not in it.
    fn finish_quietly(&mut self, kickable: &Kickable) {
        if self.unfinished {
            kickable.set(true);
            let _ = self.start.fd.run();
            kickable.set(false);
            self.unfinished = false;
        }
    }

    fn rip(&self) -> u64 {
        self.start.fd.get_regs().map_or(0, |regs| regs.rip)
    }

    fn port(&mut self) -> Option<GuestEventKind> {
        let access = port_access(self.start.fd.get_kvm_run());
        let mut request = None;
        for item in access.data.chunks_exact_mut(access.size.max(1)) {
            if access.is_in {
                self.start.bus.read(access.port, item);
            } else {
                request = request.or(self.start.bus.write(access.port, item));
            }
        }
        request.map(GuestEventKind::Device)
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
    use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs};
    use kvm_ioctls::Kvm;
    use vm_memory::{Bytes, GuestAddress};

    use super::super::install_kick_handler;
    use super::*;
    use crate::config::{MemoryConfig, PageKind, SerialConfig};
    use crate::devices::serial::{SerialHost, SerialPort};
    use crate::memory::RamBlock;

    /// A handle whose vCPU is the test.
    fn handle() -> (VcpuHandle, Receiver<Request>) {
        let (requests, inbox) = channel();
        let ready = Answer { vcpu: 0, what: "load its state", receiver: channel().1 };
        let (kicked, thread_id) = Default::default();
        (VcpuHandle { index: 0, requests, ready, kicked, thread_id, thread: None }, inbox)
    }

    fn answer(inbox: &Receiver<Request>) {
        match inbox.recv().unwrap() {
            Request::Pause(answer) => drop(answer.send(Ok(()))),
            _ => panic!("not asked to pause"),
        }
    }

    #[test]
    fn an_answer_that_came_too_late_is_not_that_of_the_next_pause() {
        let (vcpu, inbox) = handle();
        let missed = vcpu.request_pause();
        assert!(matches!(missed.wait(Instant::now()), Err(PauseError::Deadline { .. })));
        answer(&inbox);
        let next = vcpu.request_pause();
        assert!(matches!(next.wait(Instant::now()), Err(PauseError::Deadline { .. })));
        answer(&inbox);
        next.wait(Instant::now()).unwrap();
    }

    #[test]
    fn a_guest_with_a_clock_hears_of_the_pause_when_it_goes_on() {
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
        let bus = Arc::new(PortBus::new(serial, Default::default()));
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
    fn a_panic_of_the_thread_is_an_event() {
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

    #[test]
    fn a_thread_that_has_ended_answers_nothing() {
        let (vcpu, inbox) = handle();
        drop(inbox);
        let until = Instant::now() + Duration::from_secs(60);
        assert!(matches!(vcpu.request_pause().wait(until), Err(PauseError::Gone(0))));
    }
}
