//! The fallback: from adopt to the first `KVM_RUN`, any failure makes this process execute the old
//! binary again. No vCPU has run, so the guest's RAM is unchanged, and the old binary continues
//! from the same saved state.
//!
//! Before exec, the same triggers protect a process that crashes or hangs during an update: it
//! executes its own binary again, from the state it has already saved, or saves the state first
//! (`machine::salvage`). When a process cannot do that itself, because it has died or does not end
//! in time, its [keeper](crate::keeper) does it instead.
//!
//! If the old binary fails too after a fallback, it ends and leaves the guest to the keeper.
//! Without a keeper, it keeps the guest's RAM and state where an operator can find them
//! (`stranded`).

mod alarm;
mod downtime_limit;
mod plan;
mod record;
mod stranded;
mod text;
pub mod traffic;
mod triggers;

use std::fmt;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU8, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use alarm::TriggerError;
pub use downtime_limit::{DowntimeLimit, PASSED as DOWNTIME_PASSED, limit_downtime};
pub use plan::{Plan, Program, Role};
pub use record::{Record, RecordError, strings};
pub use stranded::CRASHED;
pub use triggers::Triggers;

use crate::keeper::Ending;
use crate::keeper::commit::CommitPage;
use crate::private_file::Retraction;

/// The environment variable that tells an old binary why it is executed again.
pub const FAILED_NAME: &str = "CPR_EXEC_FAILED";
/// Size of the variable, name and value together, in bytes.
const FAILED_SIZE: usize = 2048;
/// The signal of the deadline; other threads also use it to hand over to the main thread.
const ALARM: Signal = Signal::SIGALRM;

/// How to fall back, while this process takes over.
static WAY_BACK: AtomicPtr<Plan> = AtomicPtr::new(ptr::null_mut());
/// How to continue the guest that this process runs.
static LIVE: AtomicPtr<Plan> = AtomicPtr::new(ptr::null_mut());
static STAGE: AtomicU8 = AtomicU8::new(IDLE);
/// There is no fallback, or no longer one.
const IDLE: u8 = 0;
/// The first failure makes the process fall back.
const ARMED: u8 = 1;
/// A thread has claimed the fallback and is recording the reason.
const CLAIMED: u8 = 2;
/// The reason is recorded; the main thread falls back.
const READY: u8 = 3;
/// The thread that has claimed the fallback.
static CLAIMER: AtomicI32 = AtomicI32::new(0);
/// How often the main thread yields to a thread that is recording the reason.
const PATIENCE: u32 = 1_000_000;

/// Errors from arming the fallback.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    /// A trigger cannot be installed.
    #[error("cannot arm the fallback to the old binary: {0}")]
    Trigger(#[from] TriggerError),
    /// A descriptor cannot be duplicated.
    #[error("cannot duplicate descriptor {fd} for the fallback to the old binary: {errno}")]
    Reserve {
        /// The descriptor.
        fd: RawFd,
        /// The cause.
        errno: Errno,
    },
    /// This process is itself the new side of an update that is still under way.
    #[error("Guest is waiting for an incoming migration")]
    Taken,
}

/// While this exists, a failure makes the process fall back, until [`Armed::commit`].
///
/// Dropping it changes nothing: an error that unwinds drops it before the process falls back.
pub struct Armed {
    triggers: std::mem::ManuallyDrop<Option<Triggers>>,
}

/// Arms the fallback: from now on a failure makes this process fall back as `record` says, or
/// strands it. Call it on the main thread, while that is the only one.
///
/// If no trigger can be installed, this process lacks what a VMM needs, and the keeper continues in
/// its place. Without a keeper, a new binary falls back at once, and an old binary after a fallback
/// continues without triggers.
pub fn arm(record: &Record, role: Role) -> Result<Armed, ArmError> {
    let returned = matches!(role, Role::Returned(_));
    downtime_limit::note(record, &role);
    // Armed before its triggers, so that their failure is what the fallback reports.
    replace(&WAY_BACK, Some(Arc::new(Plan::new(record, role))));
    STAGE.store(ARMED, Ordering::SeqCst);
    // After a fallback there is no deadline: no other program is left to continue in this process.
    let deadline = (!returned).then(|| record.time_left());
    let triggers = Triggers::install().and_then(|mut triggers| {
        if returned {
            // `Plan::go` set it to ignored.
            triggers.alarm_was_default();
        }
        triggers.hook_panics();
        triggers.set_deadline(deadline)?;
        Ok(triggers)
    });
    let triggers = match triggers {
        Ok(triggers) => Some(triggers),
        Err(error) => {
            let error = ArmError::from(error);
            if !returned {
                if let Some(plan) = fallback() {
                    plan.leave_to_keeper(&error.to_string());
                }
                return Err(error);
            }
            // SAFETY: the default disposition. `Plan::go` set it to ignored.
            unsafe { libc::signal(ALARM as i32, libc::SIG_DFL) };
            tracing::warn!(%error, "cpr_triggers_missing");
            None
        }
    };
    Ok(Armed { triggers: std::mem::ManuallyDrop::new(triggers) })
}

/// Replaces the plan at `place`. Call it only while no thread can be using the old plan: before
/// other threads exist, or on the main thread. The keeper uses the plan that it finds after this
/// process has ended.
fn replace(place: &AtomicPtr<Plan>, plan: Option<Arc<Plan>>) {
    let new = plan.map_or(ptr::null_mut(), |plan| Arc::into_raw(plan).cast_mut());
    let old = place.swap(new, Ordering::SeqCst);
    if !old.is_null() {
        // SAFETY: it came from `into_raw`, and no thread uses it: the caller's promise.
        let old = unsafe { Arc::from_raw(old) };
        // Only one of two plans may own the duplicated descriptors.
        old.release();
    }
}

/// Sets the `plan` that the keeper uses from now on, and this process too if it crashes while
/// [`protected`].
pub fn live(plan: Option<Arc<Plan>>) {
    replace(&LIVE, plan);
}

/// The end of the reason given by a process that missed its deadline.
pub const DEADLINE_PASSED: &str = "its deadline passed";

/// Removes the saved state of an update that fails in this process. Null without an update.
static RETRACTION: AtomicPtr<Retraction> = AtomicPtr::new(ptr::null_mut());

/// Makes any process that continues the guest carry out this retraction, until the result is
/// dropped.
pub fn retracted(retraction: Retraction) -> Retracted {
    RETRACTION.store(Box::into_raw(Box::new(retraction)), Ordering::SeqCst);
    Retracted
}

/// See [`retracted`].
#[must_use = "dropping it leaves the state where it is"]
pub struct Retracted;

impl Drop for Retracted {
    fn drop(&mut self) {
        let old = RETRACTION.swap(ptr::null_mut(), Ordering::SeqCst);
        if !old.is_null() {
            // SAFETY: it came from a box, and only this thread could use it.
            drop(unsafe { Box::from_raw(old) });
        }
    }
}

/// Carries out the retraction, if one is set. Async-signal-safe.
fn retract() {
    // SAFETY: null, or a box: the only thread that could free it does not return from here, or is
    // dead.
    if let Some(retraction) = unsafe { RETRACTION.load(Ordering::SeqCst).as_ref() } {
        retraction.carry_out();
    }
}

/// Returns the plan in force: that of the take-over while there is one, otherwise the live one.
fn plan() -> Option<&'static Plan> {
    fallback().or_else(|| {
        // SAFETY: it came from `into_raw`; only `replace` frees it, when no thread uses it.
        unsafe { LIVE.load(Ordering::SeqCst).as_ref() }
    })
}

fn fallback() -> Option<&'static Plan> {
    // SAFETY: as in `plan`.
    unsafe { WAY_BACK.load(Ordering::SeqCst).as_ref() }
}

/// While this exists, a crash or a hang of the main thread makes this process continue the guest as
/// the plan given to [`live`] says.
pub struct Protected {
    _triggers: Triggers,
}

/// Protects what the main thread does; `deadline` is the time it has for that.
pub fn protected(deadline: Duration) -> Result<Protected, ArmError> {
    if fallback().is_some() || STAGE.load(Ordering::SeqCst) != IDLE {
        return Err(ArmError::Taken);
    }
    let mut triggers = Triggers::install()?;
    STAGE.store(ARMED, Ordering::SeqCst);
    triggers.set_deadline(Some(deadline))?;
    Ok(Protected { _triggers: triggers })
}

impl Drop for Protected {
    fn drop(&mut self) {
        disarm();
    }
}

fn disarm() {
    if STAGE.compare_exchange(ARMED, IDLE, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        // Another thread claimed the fallback first.
        fall_back_if_armed(format_args!(""));
    }
}

/// Continues the guest in the keeper's process.
pub fn continue_guest(ending: Ending, page: &CommitPage) -> ! {
    // SAFETY: the process that could free it has ended.
    match unsafe { LIVE.load(Ordering::SeqCst).as_ref() } {
        Some(plan) => plan.continue_as_keeper(ending, page),
        None => crate::sys::exit(0),
    }
}

impl Armed {
    /// Duplicates every descriptor that the fallback needs, so that closing one from now on does no
    /// harm.
    pub fn reserve(&self) -> Result<(), ArmError> {
        let reserved = fallback().map_or(Ok(()), |plan| plan.reserve(None, |_| true));
        reserved.map_err(|(fd, errno)| ArmError::Reserve { fd, errno })
    }

    /// Uses another record for the fallback: its `live` descriptors are as they are now, the others
    /// as they were at adopt. Call it while there is one thread.
    pub fn update(&self, record: &Record, live: &[RawFd]) -> Result<(), ArmError> {
        let new = Plan::new(record, Role::New);
        let reserved = new.reserve(fallback(), |fd| live.contains(&fd));
        reserved.map_err(|(fd, errno)| ArmError::Reserve { fd, errno })?;
        replace(&WAY_BACK, Some(Arc::new(new)));
        Ok(())
    }

    /// Falls back when this much time has passed; `None`: no deadline.
    pub fn set_deadline(&mut self, after: Option<Duration>) -> Result<(), ArmError> {
        match &mut *self.triggers {
            Some(triggers) => Ok(triggers.set_deadline(after)?),
            None => Ok(()),
        }
    }

    /// Disarms the fallback: the guest may run.
    ///
    /// If a failure has already claimed the fallback, this falls back instead of returning.
    pub fn commit(self) -> Committed {
        disarm();
        downtime_limit::forget();
        Committed { _triggers: std::mem::ManuallyDrop::into_inner(self.triggers) }
    }
}

/// A fallback that is no longer needed; dropping this frees it.
#[must_use = "freeing it can wait until the guest runs"]
pub struct Committed {
    _triggers: Option<Triggers>,
}

impl Drop for Committed {
    fn drop(&mut self) {
        replace(&WAY_BACK, None);
    }
}

/// Returns true if a failure makes this process fall back.
pub fn is_armed() -> bool {
    STAGE.load(Ordering::SeqCst) != IDLE
}

/// Makes this process fall back because of `why`. Returns if there is nothing to fall back to.
///
/// Works on any thread and in a signal handler; formatting `why` must then allocate nothing.
pub fn fall_back_if_armed(why: fmt::Arguments<'_>) {
    let Some(plan) = plan() else { return };
    // SAFETY: a system call without arguments.
    let here = unsafe { libc::syscall(libc::SYS_gettid) } as libc::pid_t;
    let claimed = match STAGE.compare_exchange(ARMED, CLAIMED, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => {
            CLAIMER.store(here, Ordering::SeqCst);
            // SAFETY: only this thread has claimed it, and it is read only once the stage is READY.
            unsafe { plan.set_why(why) };
            STAGE.store(READY, Ordering::SeqCst);
            true
        }
        Err(IDLE) => return,
        // It failed again while recording the reason: use what is recorded so far.
        Err(CLAIMED) if CLAIMER.load(Ordering::SeqCst) == here => {
            STAGE.store(READY, Ordering::SeqCst);
            true
        }
        Err(_) => false,
    };
    // SAFETY: system calls that take numbers, and are async-signal-safe.
    unsafe {
        if here == plan.main {
            let mut patience = PATIENCE;
            while STAGE.load(Ordering::SeqCst) != READY && patience > 0 {
                libc::sched_yield();
                patience -= 1;
            }
            plan.go();
        }
        // Only one signal: a second could reach the old binary before it has a handler.
        if claimed {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), plan.main, ALARM as i32);
        }
        loop {
            libc::pause();
        }
    }
}
