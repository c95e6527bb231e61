//! A thread that goes on in the place of another that crashed or hangs.
//!
//! Before exec there is no state yet to go back to: if the main thread dies on the way, the guest is
//! still there, with everything that is needed to go on but a thread to do it. The one that failed
//! sleeps for ever in its signal handler, and never touches anything again.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::text::Variable;
use super::triggers::Triggers;
use super::{ARMED, ArmError, Escape, FAILED_NAME, FAILED_SIZE, IDLE, STAGE, go_if_armed, replace};

/// What the failing thread finds prepared.
pub(super) struct Plan {
    pub(super) main: libc::pid_t,
    pub(super) why: Box<Variable<FAILED_SIZE>>,
    wake: i32,
    mask: SigSet,
}

// SAFETY: `why` is written by the one thread that has claimed the escape, and read after that.
unsafe impl Sync for Plan {}

impl Plan {
    /// Wakes the stand-in and sleeps for ever. Async-signal-safe.
    pub(super) fn go(&self) -> ! {
        #[cfg(feature = "failpoints")]
        crate::failpoints::relieve();
        let one = GO_ON.to_ne_bytes();
        // SAFETY: an eventfd takes 8 bytes; the mask is our own. This thread looks from outside as
        // it did before, and serves signals, when the other one first answers somebody.
        unsafe {
            libc::sigprocmask(libc::SIG_SETMASK, self.mask.as_ref(), std::ptr::null_mut());
            libc::write(self.wake, one.as_ptr().cast(), one.len());
            loop {
                libc::pause();
            }
        }
    }
}

/// What the stand-in reads if it is not needed, and if it is.
const GO_HOME: u64 = 1;
const GO_ON: u64 = 2;

/// A thread that waits. Dropping this sends it home.
pub struct StandIn {
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    triggers: SharedTriggers,
}

/// Taken by whichever of the two threads goes on.
type SharedTriggers = Arc<Mutex<Option<Triggers>>>;

fn take(triggers: &SharedTriggers) -> Option<Triggers> {
    triggers.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// A pointer that goes to another thread.
struct Sent<T>(*mut T);

// SAFETY: `StandIn::prepare` demands that what it leads to may be used there.
unsafe impl<T> Send for Sent<T> {}

impl StandIn {
    /// From now on, if the calling thread takes a fatal signal or does not come back within
    /// `deadline`, `go_on` is called with `of` and the reason on another thread, and has the place
    /// of the calling one, which is never heard of again.
    ///
    /// # Safety
    /// Until this is dropped, what only the calling thread may use must be safe to use by another
    /// one, once the calling one has stopped anywhere.
    pub unsafe fn prepare<T: 'static>(
        deadline: Duration,
        of: *mut T,
        go_on: fn(*mut T, &str),
    ) -> Result<Self, StandInError> {
        // There is one escape at a time, and the way back is worth more.
        if STAGE.load(Ordering::SeqCst) != IDLE {
            return Err(StandInError::Taken);
        }
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| StandInError::System("eventfd", errno.into()))?;
        let wake = Arc::new(wake);
        let triggers = SharedTriggers::default();
        let mut mask = SigSet::empty();
        // The thread is started without signals: they are for those who are at work.
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))
            .map_err(|errno| StandInError::System("sigprocmask", errno.into()))?;
        let (sent, awaited, shared) = (Sent(of), wake.clone(), triggers.clone());
        let death = nix::sys::prctl::get_pdeathsig().ok().flatten();
        let (ready, is_ready) = channel();
        let thread = std::thread::Builder::new().name("stand-in".to_owned()).spawn(move || {
            let sent = sent;
            // The process is to end with its parent, whichever thread has the main part.
            let _ = nix::sys::prctl::set_pdeathsig(death);
            let _ = ready.send(());
            let call = loop {
                match awaited.read() {
                    Err(Errno::EINTR) => {}
                    call => break call,
                }
            };
            // It may have been called more than once.
            if !call.is_ok_and(|calls| calls >= GO_ON) {
                return;
            }
            let why = match super::escape() {
                // SAFETY: it was written before the wake-up.
                Some(Escape::StandIn(plan)) => unsafe { plan.why.value() }.to_owned(),
                _ => String::new(),
            };
            drop(take(&shared));
            STAGE.store(IDLE, Ordering::SeqCst);
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None);
            go_on(sent.0, &why);
        });
        let restored = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None);
        let thread = thread.map_err(|source| StandInError::System("start a thread", source))?;
        // From here on the thread is sent home if something fails.
        let stand_in = Self { wake: wake.clone(), thread: Some(thread), triggers };
        restored.map_err(|errno| StandInError::System("sigprocmask", errno.into()))?;
        // What it takes to start a thread may be short later.
        let died = |_| StandInError::System("start a thread", io::Error::other("it ended at once"));
        is_ready.recv().map_err(died)?;
        let mut triggers = Triggers::install().map_err(ArmError::from)?;
        replace(Escape::StandIn(Plan {
            main: nix::unistd::gettid().as_raw(),
            why: Box::new(Variable::new(FAILED_NAME)),
            wake: wake.as_raw_fd(),
            mask,
        }));
        STAGE.store(ARMED, Ordering::SeqCst);
        triggers.set_deadline(Some(deadline)).map_err(ArmError::from)?;
        *stand_in.triggers.lock().unwrap_or_else(PoisonError::into_inner) = Some(triggers);
        Ok(stand_in)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // The other way round it was called already, and this thread is late.
        if STAGE.compare_exchange(ARMED, IDLE, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            go_if_armed(format_args!(""));
        }
        drop(take(&self.triggers));
        // An eventfd takes a one unless it is full.
        let _ = self.wake.write(GO_HOME);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Why there is no stand-in.
#[derive(Debug, thiserror::Error)]
pub enum StandInError {
    /// This process is itself the new half of an update that is not over.
    #[error("Guest is waiting for an incoming migration")]
    Taken,
    /// A system call failed.
    #[error("cannot prepare for a crash in the update: {0}: {1}")]
    System(&'static str, io::Error),
    /// The triggers.
    #[error(transparent)]
    Arm(#[from] ArmError),
}
