//! The fall-back: from adopt to the first `KVM_RUN` whatever goes wrong makes this process the old
//! binary again. No vCPU has run, so the guest's RAM is what it was, and the old binary goes on
//! from the same saved state.
//!
//! It is bounded to once: an old binary that was returned to and fails too keeps the guest's RAM
//! and state where an operator finds them (`stranded`).
//!
//! Before exec the same triggers do something else: another thread goes on in the place of the one
//! that crashed or hangs ([`stand_in`]).

mod plan;
mod record;
pub mod stand_in;
mod stranded;
mod text;
mod triggers;

use std::fmt;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU8, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use plan::Plan;
pub use plan::Role;
pub use record::{Record, RecordError, strings};
use text::Variable;
use triggers::TriggerError;
pub use triggers::Triggers;

/// The environment variable by which an old binary learns why it is executed again.
pub const FAILED_NAME: &str = "CPR_EXEC_FAILED";
/// Bytes of the variable, its name and value.
const FAILED_SIZE: usize = 2048;
/// The deadline's signal, and the one by which other threads hand over to the main one.
const ALARM: Signal = Signal::SIGALRM;

static ESCAPE: AtomicPtr<Escape> = AtomicPtr::new(ptr::null_mut());
static STAGE: AtomicU8 = AtomicU8::new(IDLE);
/// Nothing to go back to, or no more.
const IDLE: u8 = 0;
/// Whoever fails first makes the process go back.
const ARMED: u8 = 1;
/// Somebody has, and is writing down why.
const CLAIMED: u8 = 2;
/// It is written down; the main thread goes.
const READY: u8 = 3;
/// The thread that has claimed it.
static CLAIMER: AtomicI32 = AtomicI32::new(0);
/// How often the main thread yields to one that writes down why.
const PATIENCE: u32 = 1_000_000;

/// What a failure leads to.
enum Escape {
    /// The old binary, or at least the guest's RAM.
    GoBack(Plan),
    /// Another thread of this one.
    StandIn(stand_in::Plan),
}

impl Escape {
    /// The thread on which it takes place.
    fn main(&self) -> libc::pid_t {
        match self {
            Self::GoBack(plan) => plan.main,
            Self::StandIn(plan) => plan.main,
        }
    }

    fn why(&self) -> &Variable<FAILED_SIZE> {
        match self {
            Self::GoBack(plan) => &plan.why,
            Self::StandIn(plan) => &plan.why,
        }
    }

    fn go(&self) -> ! {
        match self {
            Self::GoBack(plan) => plan.go(),
            Self::StandIn(plan) => plan.go(),
        }
    }
}

/// Why there is no way back.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    /// A trigger.
    #[error("cannot prepare to go back to the old binary: {0}")]
    Trigger(#[from] TriggerError),
    /// A descriptor.
    #[error("cannot duplicate descriptor {fd} for going back to the old binary: {errno}")]
    Reserve {
        /// Which.
        fd: RawFd,
        /// Why.
        errno: Errno,
    },
}

/// The process goes back when something fails, until [`Armed::commit`].
///
/// Dropping it changes nothing: it is dropped where an error unwinds, and that is not yet the end.
pub struct Armed {
    triggers: std::mem::ManuallyDrop<Triggers>,
}

/// On the main thread, which is the only one: from now on a failure makes this process go back by
/// `record`, or strand it.
pub fn arm(record: &Record, role: Role) -> Result<Armed, ArmError> {
    let mut triggers = Triggers::install()?;
    if role != Role::New {
        // `Plan::go` has left it so.
        triggers.alarm_was_default();
    }
    triggers.hook_panics();
    replace(Escape::GoBack(Plan::new(record, role)));
    STAGE.store(ARMED, Ordering::SeqCst);
    let mut armed = Armed { triggers: std::mem::ManuallyDrop::new(triggers) };
    armed.set_deadline(Some(Duration::from_millis(record.deadline_ms)))?;
    Ok(armed)
}

/// While nobody is about to escape: before there are other threads, or on the one that armed it.
fn replace(escape: Escape) {
    let old = ESCAPE.swap(Box::into_raw(Box::new(escape)), Ordering::SeqCst);
    if !old.is_null() {
        // SAFETY: it came from a box, and nobody uses it: the stage was IDLE, or there is one thread.
        let old = unsafe { Box::from_raw(old) };
        if let Escape::GoBack(plan) = &*old {
            plan.release();
        }
    }
}

fn escape() -> Option<&'static Escape> {
    // SAFETY: it came from a box that is freed by `replace` only, when nobody uses it.
    unsafe { ESCAPE.load(Ordering::SeqCst).as_ref() }
}

/// The thread that escapes.
fn main_thread() -> Option<libc::pid_t> {
    escape().map(Escape::main)
}

fn plan() -> Option<&'static Plan> {
    match escape() {
        Some(Escape::GoBack(plan)) => Some(plan),
        _ => None,
    }
}

impl Armed {
    /// Makes sure that nothing which is closed from now on is missing when the process goes back.
    pub fn reserve(&self) -> Result<(), ArmError> {
        let reserved = plan().map_or(Ok(()), |plan| plan.reserve(None, |_| true));
        reserved.map_err(|(fd, errno)| ArmError::Reserve { fd, errno })
    }

    /// Goes back by another record, of which the `live` descriptors are as they are now and the
    /// others as they were at adopt. While there is one thread.
    pub fn update(&self, record: &Record, live: &[RawFd]) -> Result<(), ArmError> {
        let new = Plan::new(record, Role::New);
        let reserved = new.reserve(plan(), |fd| live.contains(&fd));
        reserved.map_err(|(fd, errno)| ArmError::Reserve { fd, errno })?;
        replace(Escape::GoBack(new));
        Ok(())
    }

    /// Goes back after so much time; `None`: as long as it takes.
    pub fn set_deadline(&mut self, after: Option<Duration>) -> Result<(), ArmError> {
        Ok(self.triggers.set_deadline(after)?)
    }

    /// Nothing makes this process go back any more: the guest may run.
    pub fn commit(self) -> Committed {
        if STAGE.compare_exchange(ARMED, IDLE, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            // Another thread was faster.
            go_if_armed(format_args!(""));
        }
        Committed { _triggers: std::mem::ManuallyDrop::into_inner(self.triggers) }
    }
}

/// A way back that is not needed any more; dropping this clears it away.
#[must_use = "clearing it away can wait until the guest runs"]
pub struct Committed {
    _triggers: Triggers,
}

impl Drop for Committed {
    fn drop(&mut self) {
        if let Some(plan) = plan() {
            plan.release();
        }
    }
}

/// True where a failure is not the end.
pub fn is_armed() -> bool {
    STAGE.load(Ordering::SeqCst) != IDLE
}

/// Makes this process go back because of `why`. Returns where there is nothing to go back to.
///
/// On any thread, and in a signal handler: `why` must then be made of what needs no memory.
pub fn go_if_armed(why: fmt::Arguments<'_>) {
    let Some(escape) = escape() else { return };
    let main = escape.main();
    // SAFETY: a system call without arguments.
    let here = unsafe { libc::syscall(libc::SYS_gettid) } as libc::pid_t;
    if here != main && matches!(escape, Escape::StandIn(_)) {
        // Nobody stands in for a vCPU.
        return;
    }
    let claimed = match STAGE.compare_exchange(ARMED, CLAIMED, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => {
            CLAIMER.store(here, Ordering::SeqCst);
            // SAFETY: nobody else has claimed it, and it is read once it is READY.
            unsafe { escape.why().set(why) };
            STAGE.store(READY, Ordering::SeqCst);
            true
        }
        Err(IDLE) => return,
        // It failed once more while it wrote down why: what there is must do.
        Err(CLAIMED) if CLAIMER.load(Ordering::SeqCst) == here => {
            STAGE.store(READY, Ordering::SeqCst);
            true
        }
        Err(_) => false,
    };
    // SAFETY: system calls that take numbers, and are async-signal-safe.
    unsafe {
        if here == main {
            let mut patience = PATIENCE;
            while STAGE.load(Ordering::SeqCst) != READY && patience > 0 {
                libc::sched_yield();
                patience -= 1;
            }
            escape.go();
        }
        // One signal: a second could reach the old binary before it has a handler.
        if claimed {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), main, ALARM as i32);
        }
        loop {
            libc::pause();
        }
    }
}
