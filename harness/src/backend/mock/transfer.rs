//! The mock's `cpr-transfer`: in the old process, and in the new one.
//!
//! On the `cpr` channel goes the RAM's descriptor with a byte, on which the new process answers with
//! a byte once it has built the VM; on the main channel goes the run state, answered in the same way.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use cpr_qmp::message::QmpError;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde_json::Value;

use super::handover::{UnderWay, set_close_on_exec};
use super::machine::Machine;
use super::ram;
use super::waiting::Waiting;
use super::{Args, Fault};

/// Longer than the other process takes to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// The byte that both processes send.
const READY: [u8; 1] = [1];

/// The path in `channels` of the one of this type.
fn path_of(channels: &Value, kind: &str) -> Option<String> {
    let all = channels.as_array()?;
    let channel = all.iter().find(|channel| channel["channel-type"] == kind)?;
    channel["addr"]["path"].as_str().map(str::to_owned)
}

impl Args {
    /// The paths of the main and the `cpr` channel, if this VMM waits on them.
    fn channels(&self) -> Option<[String; 2]> {
        let json = |word: &String| serde_json::from_str::<Value>(word).ok();
        let cpr = self.incoming.iter().find_map(json)?;
        let main = self.incoming.iter().find_map(|word| word.strip_prefix("unix:"))?;
        Some([main.to_owned(), cpr["addr"]["path"].as_str()?.to_owned()])
    }
}

// In the old process.
impl Machine {
    /// Connects to the new process; a refusal leaves everything as it was.
    pub fn begin_transfer(&mut self, channels: &Value) -> Result<(), QmpError> {
        let path = |kind: &str| {
            path_of(channels, kind)
                .ok_or_else(|| QmpError::generic(format!("Channel list has no {kind} entry")))
        };
        let (main, cpr) = (path("main")?, path("cpr")?);
        let refused = |e| QmpError::generic(format!("cannot connect to {cpr}: {e}"));
        let stream = UnixStream::connect(&cpr).map_err(refused)?;
        self.waiting = Some(Waiting::Old(stream, main));
        Ok(())
    }

    /// Sends the RAM to the new process, which answers later.
    pub fn send_ram(&mut self) {
        self.error = None;
        self.set_status(MigrationStatus::Setup);
        let Some(Waiting::Old(stream, _)) = &self.waiting else { return };
        let ram = [self.guest.ram().as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&ram)];
        let parts = [IoSlice::new(&READY)];
        // If it is gone, the answer is missing.
        let _ = sendmsg::<()>(stream.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None);
    }

    /// Cancels an update that waits for the new process.
    pub fn cancel_transfer(&mut self) {
        if let Some(Waiting::Old(..)) = self.waiting {
            self.waiting = None;
            self.set_status(MigrationStatus::Cancelling);
            self.set_status(MigrationStatus::Cancelled);
        }
    }

    /// Continues an update whose other process has acted.
    pub fn continue_transfer(&mut self) -> io::Result<()> {
        match self.waiting.take() {
            None => Ok(()),
            Some(Waiting::New(listener)) => self.take_over(&listener),
            Some(Waiting::Old(stream, main)) => {
                self.finish_transfer(&stream, &main);
                Ok(())
            }
        }
    }

    fn finish_transfer(&mut self, cpr: &UnixStream, main: &str) {
        let before = self.run_state;
        self.under_way = Some(UnderWay { before, stopped: false });
        let built = answer(cpr).map_err(|e| format!("the new VMM has not built the VM: {e}"));
        let done = built.and_then(|()| {
            self.pause(RunState::FinishMigrate);
            self.set_status(MigrationStatus::Active);
            let sent = UnixStream::connect(main).and_then(|mut stream| {
                stream.write_all(&[number_of(before)])?;
                self.set_status(MigrationStatus::Device);
                answer(&stream)
            });
            sent.map_err(|e| format!("the new VMM has not taken over: {e}"))
        });
        match done {
            Ok(()) => {
                if !self.args.has(Fault::KeepRunState) {
                    self.run_state = RunState::Postmigrate;
                }
                if self.args.has(Fault::RunTwice) {
                    self.guest.set_running(true);
                }
                self.set_status(MigrationStatus::Completed);
            }
            Err(why) => {
                self.error = Some(why);
                self.set_status(MigrationStatus::Failed);
                if before.is_running() {
                    self.unpause();
                }
            }
        }
        self.under_way = None;
    }
}

// In the new process.
impl Machine {
    /// Takes the VM over, whose state the old process sends on the main channel.
    fn take_over(&mut self, main: &UnixListener) -> io::Result<()> {
        let (mut old, _) = main.accept()?;
        if let Some([path, _]) = self.args.channels() {
            std::fs::remove_file(path)?;
        }
        let mut runs = [0];
        old.read_exact(&mut runs)?;
        self.run_state = state_of(runs[0]);
        if self.args.has(Fault::LeakFd) {
            std::mem::forget(File::open("/dev/null")?);
        }
        self.guest.start(self.args.cpus, false)?;
        if self.run_state.is_running() {
            self.guest.set_running(!self.args.has(Fault::Freeze));
            self.emit("RESUME", None);
        }
        self.status = MigrationStatus::Completed;
        match self.args.has(Fault::RunUnanswered) {
            true => Ok(()),
            false => old.write_all(&READY),
        }
    }
}

/// Receives the RAM of the old process in a new one, and prepares it; none if this VMM boots.
pub fn receive_ram(args: &Args) -> io::Result<Option<(OwnedFd, UnixStream, UnixListener)>> {
    let Some([main, cpr]) = args.channels() else { return Ok(None) };
    let (old, _) = UnixListener::bind(&cpr)?.accept()?;
    if !args.has(Fault::KeepChannel) {
        std::fs::remove_file(&cpr)?;
    }
    let mut byte = [0];
    let mut space = nix::cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message =
        recvmsg::<()>(old.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let received = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let number = received.ok_or_else(|| io::Error::other("no RAM came on the cpr channel"))?;
    set_close_on_exec(number, true);
    // SAFETY: the kernel has just created this descriptor for this process.
    let mut ram = unsafe { OwnedFd::from_raw_fd(number) };
    let bytes = File::from(ram.try_clone()?).metadata()?.len();
    if bytes != args.memory_bytes()? {
        return Err(io::Error::other(format!("the RAM has {bytes} bytes, not {}", args.memory)));
    }
    if args.has(Fault::CopyRam) {
        ram::copy_ram(&mut ram)?;
    }
    Ok(Some((ram, old, UnixListener::bind(&main)?)))
}

/// Tells the old process that the VM is built.
pub fn built(mut old: UnixStream) -> io::Result<()> {
    old.write_all(&READY)
}

/// A run state on the main channel.
fn number_of(state: RunState) -> u8 {
    match state {
        RunState::Running => 2,
        RunState::Prelaunch => 1,
        _ => 0,
    }
}

fn state_of(number: u8) -> RunState {
    match number {
        2 => RunState::Running,
        1 => RunState::Prelaunch,
        _ => RunState::Paused,
    }
}

fn answer(mut stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(ANSWER))?;
    let mut byte = [0];
    stream.read_exact(&mut byte)
}
