//! The faults that the mock can simulate.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;

/// Longer than any guest may be stopped.
pub(super) const TOO_LONG: Duration = Duration::from_secs(4);
/// A time that no gap between heartbeats reveals on a busy host.
pub(super) const A_MOMENT: Duration = Duration::from_millis(3);

/// A fault; all but the last few occur in an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// Leave a descriptor open.
    LeakFd,
    /// Leave a descriptor open briefly, which is not a fault.
    LingerFd,
    /// Continue in another process.
    ChangePid,
    /// Execute another file than asked for.
    OtherExecutable,
    /// Report a successful update to clients, but execute nothing.
    PretendToExec,
    /// Create a second VM.
    SecondVm,
    /// Move RAM to a new file.
    CopyRam,
    /// Move RAM to other page frames of the same file.
    MoveFrames,
    /// Move a quarter of RAM to other page frames of the same file.
    MoveSomeFrames,
    /// Flip one byte of RAM.
    FlipByte,
    /// Flip one byte below the RAM that guests fill.
    FlipLowByte,
    /// Let a paused guest run.
    ResumePaused,
    /// Report a paused guest as running after an update, and a running one as paused.
    LieAfterUpdate,
    /// Lose a register.
    LoseRegister,
    /// Stop the guest for longer than allowed.
    Dawdle,
    /// Stop the guest for a while, without an event, before refusing an update.
    StopToRefuse,
    /// Stop the guest for a moment, without an event, before refusing an update; the vCPUs never
    /// sleep otherwise.
    PauseToRefuse,
    /// Report that the guest runs, but keep it stopped.
    Freeze,
    /// Keep one vCPU running while the guest is paused, after an update.
    BeatWhilePaused,
    /// Let the guest take an exception.
    GuestException,
    /// Let the guest panic.
    GuestPanic,
    /// Let the guest boot again.
    Reboot,
    /// Log a triple fault of the guest.
    TripleFault,
    /// Omit `MIGRATION(device)`.
    DropEvent,
    /// Send `RESUME` too late.
    ReorderEvents,
    /// Send events to the first client only, after an update.
    MuteSecondClient,
    /// Greet the clients again.
    SecondGreeting,
    /// Answer `migrate` twice.
    AnswerTwice,
    /// Omit the CR at the end of events, after an update.
    BareNewline,
    /// Stamp events with an earlier time, after an update.
    BackwardsClock,
    /// Reply differently to a query after an update.
    OtherAnswer,
    /// Forget the parameters of an update that failed.
    ForgetParameters,
    /// Report another status in `query-migrate` than in the events.
    WrongMigrateStatus,
    /// Leave `mode` set after a good update.
    KeepMode,
    /// Leave `CPR_EXEC_STATE` in the environment.
    KeepVariable,
    /// Leave the state's memfd open.
    KeepStateFd,
    /// Leave a child process.
    KeepChild,
    /// Change the umask.
    ChangeUmask,
    /// Leave a signal blocked.
    BlockSignal,
    /// Ignore a signal.
    IgnoreSignal,
    /// Raise the nice value.
    Renice,
    /// Lower the soft limit on open files.
    LowerLimit,
    /// Go to another directory.
    ChangeDirectory,
    /// Take another process name.
    Rename,
    /// Change the timer slack of the main thread.
    ChangeTimerSlack,
    /// Raise its own OOM score.
    ChangeOomScore,
    /// Leave executable memory mapped.
    StrayMapping,
    /// Raise the nice value of the first vCPU's thread only.
    ReniceVcpu,
    /// Give the first vCPU's thread another name.
    RenameVcpu,
    /// Report another thread in `query-cpus-fast`.
    LieAboutThreads,
    /// Have epoll wait for a client instead of the listener.
    WaitForAnother,
    /// Leave the log locked.
    LeakLock,
    /// Change the size of the listener's buffer.
    ChangeSocketOption,
    /// Add a variable to the environment.
    AddVariable,
    /// Boot with a listener that every child inherits.
    InheritableListener,
    /// Keep running after `quit` when a new VMM has taken over.
    StayAfterQuit,
    /// Let the vCPUs run in the old VMM, too, when a new one has taken over.
    RunTwice,
    /// Run the guest in the new process of a transfer without an answer to the old one, which then
    /// reports a failure.
    RunUnanswered,
    /// Report the run state of the update when a new VMM has taken over.
    KeepRunState,
    /// Leave the socket of the `cpr` channel behind.
    KeepChannel,
    /// Include guest RAM in core dumps.
    DumpRam,
    /// Create a world-writable PID file.
    OpenPidFile,
    /// Create a world-readable state file.
    OpenState,
    /// Change the mode of the log.
    ChangeLogMode,
    /// Leave a file in the VM's folder.
    StrayFile,
    /// Write the PID file again.
    RewritePidFile,
    /// Leave close-on-exec cleared after a failed exec.
    KeepInheritable,
    /// Omit the command from the error.
    NamelessError,
    /// Fail without any error.
    EmptyError,
    /// Omit the errno from the error.
    ErrorWithoutErrno,
    /// Report success although exec failed.
    SuccessForFailure,
    /// Report twice that the guest was stopped.
    StopTwice,
    /// Refuse an update if another command is queued after it.
    RefuseInRace,
    /// Ignore the fail points.
    PassFailpoints,
    /// Never finish an update.
    Hang,
    /// Exit in an update.
    Die,
    /// Leave a process behind that is no longer its child.
    Outlived,
    /// Leave a file outside the VM's folder.
    FileOutside,
    /// Do not start where another VMM ran before.
    NoSecondStart,
    /// Let the keeper exit when the VMM dies.
    NoRevival,
    /// Wait before the VM continues in the keeper's process.
    SlowRevival,
    /// Continue the VM in a child of the keeper. The next faults also occur in a revival.
    OtherHeir,
    /// Leave another process that has all of the VMM's descriptors.
    ReviveTwice,
    /// Let the guest take an exception.
    ReviveDamaged,
    /// Flip one byte of RAM.
    ReviveFlipped,
    /// Leave an extra process that looks like a keeper.
    KeepKeeper,
    /// Leave the former PID in the PID file.
    KeepOldPid,
    /// Close all QMP connections.
    LoseClients,
    /// Report a paused guest as running, and a running one as paused.
    LieAfterRevival,
    /// Write nothing to standard error.
    SilentRevival,
    /// Report only after the guest has resumed that the VM continues in another process.
    LateRevival,
    /// Omit the processes from the error of the update.
    NamelessRevival,
    /// Let the guest report that it lacks a feature that every host has.
    LackAtBoot,
    /// Leave the socket behind at `quit`.
    KeepSocket,
    /// Leave the serial port's socket behind at `quit`.
    KeepSerialSocket,
    /// Create the serial port's socket again in an update.
    RemakeSerialSocket,
    /// Skip a line on the serial port.
    SkipSerialLine,
    /// Use more memory after each update.
    Grow,
    /// Leave the PID file behind at `quit`.
    KeepPidFile,
    /// Report at `quit` that a signal ended it.
    OtherReason,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |v| v.get_name()))
    }
}
