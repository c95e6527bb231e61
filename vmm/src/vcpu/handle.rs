//! The machine's handle to a vCPU: requests, and their pending answers.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::kick::kick;
use super::request::{Request, VcpuStart};
use super::shared::VcpuShared;
use super::state::VcpuState;
use super::state_error::StateError;
use super::thread::Vcpu;
use crate::end_signals;

/// The machine's end of a vCPU's thread. It starts paused. Dropping it ends the thread.
#[derive(Debug)]
pub struct VcpuHandle {
    index: u8,
    requests: Sender<Request>,
    ready: Answer<()>,
    kicked: Arc<AtomicBool>,
    thread_id: Arc<OnceLock<i32>>,
    shared: Arc<VcpuShared>,
    thread: Option<JoinHandle<()>>,
}

/// Errors from vCPU requests.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// The vCPU did not answer before the deadline.
    #[error("vCPU {vcpu} did not {what} within {waited:?}")]
    Deadline {
        /// The vCPU.
        vcpu: u8,
        /// The request.
        what: &'static str,
        /// The time it had.
        waited: Duration,
    },
    /// The vCPU's thread has ended.
    #[error("the thread of vCPU {0} has ended")]
    Gone(u8),
    /// The vCPU's state could not be read or written.
    #[error(transparent)]
    State(#[from] StateError),
}

impl VcpuHandle {
    /// Starts the thread; the vCPU waits for [`VcpuHandle::run`].
    pub fn spawn(mut start: VcpuStart) -> std::io::Result<Self> {
        let run = std::ptr::from_mut(start.fd.get_kvm_run());
        let shared = Arc::new(VcpuShared::new(start.fd.as_raw_fd(), run));
        let (requests, inbox) = channel();
        let (loaded, receiver) = channel();
        let kicked = Arc::new(AtomicBool::new(false));
        let index = start.index;
        let thread_id = Arc::new(OnceLock::new());
        let thread = {
            let (kicked, thread_id) = (kicked.clone(), thread_id.clone());
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("vcpu{index}")).spawn(move || {
                end_signals::leave_to_others();
                thread_id.get_or_init(|| nix::unistd::gettid().as_raw());
                Vcpu::new(start, inbox, kicked, shared).main(loaded);
            })?
        };
        let ready = Answer { vcpu: index, what: "load its state", receiver };
        Ok(Self { index, requests, ready, kicked, thread_id, shared, thread: Some(thread) })
    }

    /// The state that the thread shares with the code that continues the guest without it.
    pub fn shared(&self) -> &Arc<VcpuShared> {
        &self.shared
    }

    /// The thread's ID.
    pub fn thread_id(&self) -> i32 {
        *self.thread_id.wait()
    }

    fn send(&self, request: Request) {
        // If the thread is gone, waiting for its answer reports that.
        let _ = self.requests.send(request);
    }

    /// Sends a request that must get the thread out of the guest; for others it is already waiting.
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

    /// Asks the vCPU to inject an NMI: only its own thread can, and may have to leave the guest for
    /// it.
    pub fn request_nmi(&self) -> Answer<()> {
        let (answer, receiver) = channel();
        self.send_and_kick(Request::Nmi(answer));
        Answer { vcpu: self.index, what: "take an NMI", receiver }
    }
}

/// The pending answer to a vCPU request.
#[derive(Debug)]
pub struct Answer<T> {
    vcpu: u8,
    what: &'static str,
    receiver: Receiver<Result<T, StateError>>,
}

impl<T> Answer<T> {
    /// Waits for the answer, until the deadline `until`.
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
            // A panic of the thread has already been printed.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A handle whose vCPU's thread is the test itself.
    fn handle() -> (VcpuHandle, Receiver<Request>) {
        let (requests, inbox) = channel();
        let ready = Answer { vcpu: 0, what: "load its state", receiver: channel().1 };
        let (kicked, thread_id) = Default::default();
        let shared = Arc::new(VcpuShared::new(-1, std::ptr::null_mut()));
        (VcpuHandle { index: 0, requests, ready, kicked, thread_id, shared, thread: None }, inbox)
    }

    fn answer(inbox: &Receiver<Request>) {
        match inbox.recv().unwrap() {
            Request::Pause(answer) => drop(answer.send(Ok(()))),
            _ => panic!("expected a pause request"),
        }
    }

    #[test]
    fn late_answer_is_not_taken_for_that_of_the_next_pause() {
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
    fn ended_thread_is_reported_as_gone() {
        let (vcpu, inbox) = handle();
        drop(inbox);
        let until = Instant::now() + Duration::from_secs(60);
        assert!(matches!(vcpu.request_pause().wait(until), Err(PauseError::Gone(0))));
    }
}
