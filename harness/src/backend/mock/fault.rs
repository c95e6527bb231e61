//! What the mock can do wrong.

use std::fmt;

use clap::ValueEnum;

/// One misbehaviour; all but the last few show in an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// Leave a descriptor open.
    LeakFd,
    /// Leave a descriptor open for a moment: no fault.
    LingerFd,
    /// Go on in another process.
    ChangePid,
    /// Execute another file than asked for.
    OtherExecutable,
    /// Tell clients that an update has succeeded, and execute nothing.
    PretendToExec,
    /// Bring a second VM along.
    SecondVm,
    /// Move RAM to a new file.
    CopyRam,
    /// Move RAM to other page frames of the same file.
    MoveFrames,
    /// Move a quarter of RAM to other page frames of the same file.
    MoveSomeFrames,
    /// Flip one byte of RAM.
    FlipByte,
    /// Flip one below the RAM that guests fill.
    FlipLowByte,
    /// Let a paused guest run.
    ResumePaused,
    /// Say after an update that the guest runs when it is paused, and the other way round.
    LieAfterUpdate,
    /// Lose a register.
    LoseRegister,
    /// Let the guest stand still for longer than it may.
    Dawdle,
    /// Stop the guest for a while, unseen by clients, before an update is refused.
    StopToRefuse,
    /// Say that the guest runs, and let it stand still.
    Freeze,
    /// Let one vCPU run on while the guest is paused, after an update.
    BeatWhilePaused,
    /// Let the guest take an exception.
    GuestException,
    /// Let the guest panic.
    GuestPanic,
    /// Let the guest boot anew.
    Reboot,
    /// Log a triple fault of the guest.
    TripleFault,
    /// Leave out `MIGRATION(device)`.
    DropEvent,
    /// Send `RESUME` too late.
    ReorderEvents,
    /// Send events to the first client only, after an update.
    MuteSecondClient,
    /// Greet the clients again.
    SecondGreeting,
    /// Answer `migrate` twice.
    AnswerTwice,
    /// Leave the CR out where events end, after an update.
    BareNewline,
    /// Stamp events with an earlier time, after an update.
    BackwardsClock,
    /// Answer a query in another way after an update.
    OtherAnswer,
    /// Forget the parameters of an update that failed.
    ForgetParameters,
    /// Answer `query-migrate` with another status than the events had.
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
    /// Change how much later than asked for timers of the main thread may fire.
    ChangeTimerSlack,
    /// Offer itself to the OOM killer.
    ChangeOomScore,
    /// Leave memory mapped that could be executed.
    StrayMapping,
    /// Raise the nice value of the first vCPU's thread only.
    ReniceVcpu,
    /// Give the first vCPU's thread another name.
    RenameVcpu,
    /// Name another thread in `query-cpus-fast`.
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
    /// Have guest RAM in core dumps.
    DumpRam,
    /// Make a PID file that everybody may write to.
    OpenPidFile,
    /// Make a state file that everybody may read.
    OpenState,
    /// Change the mode of the log.
    ChangeLogMode,
    /// Leave a file in the VM's folder.
    StrayFile,
    /// Write the PID file again.
    RewritePidFile,
    /// After a failed exec, leave close-on-exec cleared.
    KeepInheritable,
    /// Do not name the command in the error.
    NamelessError,
    /// Fail without any error.
    EmptyError,
    /// Do not give the errno in the error.
    ErrorWithoutErrno,
    /// Report success where exec failed.
    SuccessForFailure,
    /// Tell twice that the guest was stopped.
    StopTwice,
    /// Refuse an update behind which another command waits.
    RefuseInRace,
    /// Pass the fail points by.
    PassFailpoints,
    /// Never finish an update.
    Hang,
    /// End in an update.
    Die,
    /// Leave a process that hides from its parent.
    Outlived,
    /// Leave a file outside the VM's folder.
    FileOutside,
    /// Do not start where another VMM has been.
    NoSecondStart,
    /// Let the keeper end with the VMM.
    NoRevival,
    /// Wait before the VM continues in the keeper's process.
    SlowRevival,
    /// Let the VM continue in a child of the keeper. What follows is done in a revival, too.
    OtherHeir,
    /// Leave another process that has all that the VMM has.
    ReviveTwice,
    /// Let the guest take an exception.
    ReviveDamaged,
    /// Flip one byte of RAM.
    ReviveFlipped,
    /// Have a keeper though there is to be none.
    KeepKeeper,
    /// Leave the former PID in the PID file.
    KeepOldPid,
    /// Close all QMP connections.
    LoseClients,
    /// Say that a paused guest runs, and the other way round.
    LieAfterRevival,
    /// Write nothing to standard error.
    SilentRevival,
    /// Do not say that the VM continues elsewhere before the guest goes on.
    LateRevival,
    /// Do not name the processes in the error of the update.
    NamelessRevival,
    /// Let the guest say that it lacks what no host does.
    LackAtBoot,
    /// Leave the socket behind at `quit`.
    KeepSocket,
    /// Leave the serial port's socket behind at `quit`.
    KeepSerialSocket,
    /// Make the serial port's socket anew in an update.
    RemakeSerialSocket,
    /// Leave a line out on the serial port.
    SkipSerialLine,
    /// Need more memory after each update.
    Grow,
    /// Leave the PID file behind at `quit`.
    KeepPidFile,
    /// Say at `quit` that a signal has ended it.
    OtherReason,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |v| v.get_name()))
    }
}
