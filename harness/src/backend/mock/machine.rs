//! The mock's VM: its state and its events.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use cpr_qmp::message::{Event, QmpError};
use cpr_qmp::migration::{MigMode, MigrationStatus};
use cpr_qmp::run_state::{RunState, StatusInfo};
use kvm_ioctls::VmFd;
use nix::sys::epoll::Epoll;
use serde_json::{Value, json};

use super::checkpoint::Checkpoint;
use super::failpoint::Armed;
use super::guest::Guest;
use super::handover::UnderWay;
use super::keeper::Keeper;
use super::waiting::Waiting;
use super::{Args, Fault};

/// One QMP connection.
pub struct Client {
    pub stream: UnixStream,
    pub input: Vec<u8>,
}

impl Client {
    /// Sends a line in one write, so that a process that dies never leaves half a line.
    pub fn send(&mut self, line: &str) -> io::Result<()> {
        self.send_with(line, "\r\n")
    }

    fn send_with(&mut self, line: &str, end: &str) -> io::Result<()> {
        self.stream.write_all(format!("{line}{end}").as_bytes())
    }
}

/// The state of the mock.
pub struct Machine {
    pub args: Args,
    pub guest: Guest,
    pub listener: UnixListener,
    pub clients: Vec<Client>,
    /// The listener of the serial port, if that is a socket.
    pub serial: Option<UnixListener>,
    pub serial_clients: Vec<UnixStream>,
    /// The number of the last line sent to the serial port's clients.
    pub serial_line: u32,
    /// Updates so far.
    pub updates: usize,
    /// Unused memory, for [`Fault::Grow`].
    pub(super) _ballast: Vec<u8>,
    pub log: File,
    /// VMs, held open but never used.
    pub(super) _kvm: Vec<VmFd>,
    /// An epoll instance like that of a real VMM; never used.
    pub(super) _epoll: Epoll,
    pub run_state: RunState,
    pub mode: MigMode,
    pub command: Vec<String>,
    /// Whether the command was set, even if to an empty list.
    pub command_was_set: bool,
    pub events: bool,
    pub status: MigrationStatus,
    pub error: Option<String>,
    pub under_way: Option<UnderWay>,
    /// A pending request: connection and ID.
    pub asked: Option<(i32, Value)>,
    pub keeper: Option<Keeper>,
    pub armed: Armed,
    /// Whether it continues the VM of a process that died.
    pub revived: bool,
    /// Whether a signal has requested that it end.
    pub ends: bool,
    pub(super) checkpoint: Checkpoint,
    /// An update that waits for its other process.
    pub waiting: Option<Waiting>,
    /// An event held back by [`Fault::ReorderEvents`].
    pub(super) held: Option<Event>,
}

impl Machine {
    /// A register's value, as KVM would return it.
    pub fn register(&self) -> &'static str {
        let lost = self.args.has(Fault::LoseRegister) && self.args.takes_over();
        if lost { "0x0" } else { "0x1234" }
    }

    fn misreports(&self) -> bool {
        self.args.has(Fault::LieAfterUpdate) && self.args.takes_over()
            || self.args.has(Fault::LieAfterRevival) && self.revived
    }

    /// The reply to `query-status`.
    pub fn status_info(&self) -> StatusInfo {
        let status = match (self.misreports(), self.run_state) {
            (true, RunState::Running) => RunState::Paused,
            (true, _) => RunState::Running,
            (false, state) => state,
        };
        StatusInfo { running: status.is_running(), status }
    }

    /// The reply to `query-cpus-fast`.
    pub fn query_cpus(&self) -> Value {
        let cpu = |(index, thread): (usize, &i32)| {
            json!({
                "cpu-index": index, "qom-type": "mock-cpu", "qom-path": format!("/cpu/{index}"),
                "thread-id": thread, "target": "x86_64",
            })
        };
        if self.args.has(Fault::LieAboutThreads) {
            return [&(std::process::id() as i32 - 1)].into_iter().enumerate().map(cpu).collect();
        }
        self.guest.threads.iter().enumerate().map(cpu).collect()
    }

    /// Sets the migration status and sends its event.
    pub fn set_status(&mut self, status: MigrationStatus) {
        self.status = status;
        if status == MigrationStatus::Completed {
            self.under_way = None;
        }
        let dropped = self.args.has(Fault::DropEvent) && status == MigrationStatus::Device;
        if self.events && !dropped {
            self.emit("MIGRATION", Some(json!({ "status": status })));
        }
        // If this fails, the keeper cannot continue the VM, which a check detects.
        let _ = self.checkpoint();
    }

    /// Sends an event to every client.
    pub fn emit(&mut self, name: &str, data: Option<Value>) {
        let mut event = Event::now(name, data);
        let updated = self.args.takes_over();
        if self.args.has(Fault::BackwardsClock) && updated {
            event.timestamp.seconds -= 10;
        }
        if self.args.has(Fault::ReorderEvents) && name == "RESUME" {
            self.held = Some(event);
            return;
        }
        // The held event gets the current time, as if it had just happened.
        let held = self.held.take().map(|held| Event { timestamp: event.timestamp, ..held });
        for event in [Some(event), held].into_iter().flatten() {
            let line = serde_json::to_string(&event).unwrap_or_default();
            let mute = self.args.has(Fault::MuteSecondClient) && updated;
            let end = if self.args.has(Fault::BareNewline) && updated { "\n" } else { "\r\n" };
            let heard = if mute { 1 } else { self.clients.len() };
            for client in self.clients.iter_mut().take(heard) {
                // A disconnected client is detected when it is read.
                let _ = client.send_with(&line, end);
            }
        }
    }

    /// Stops the guest.
    pub fn pause(&mut self, state: RunState) {
        if self.run_state == RunState::Running {
            self.guest.set_running(false);
            self.run_state = state;
            self.emit("STOP", None);
            if self.args.has(Fault::StopTwice) {
                self.emit("STOP", None);
            }
            if let Some(update) = &mut self.under_way {
                update.stopped = true;
            }
            // Ignored as in `set_status`.
            let _ = self.checkpoint();
        }
    }

    /// Resumes the guest.
    pub fn unpause(&mut self) {
        if self.run_state == RunState::Running {
            return;
        }
        if self.run_state == RunState::Prelaunch {
            self.guest.boot(self.args.cpus);
        }
        self.guest.set_running(true);
        self.run_state = RunState::Running;
        self.emit("RESUME", None);
    }

    /// Boots the guest again; a stopped guest boots when it is resumed.
    pub fn reset(&mut self) {
        if self.run_state.is_running() {
            self.guest.boot(self.args.cpus);
        } else {
            self.run_state = RunState::Prelaunch;
        }
        self.emit("RESET", Some(json!({ "guest": false, "reason": "host-qmp-system-reset" })));
    }
}

/// The result of a command.
pub type Answer = Result<Value, QmpError>;

/// The first message of every connection.
pub fn greeting() -> Value {
    json!({ "QMP": { "version": version("mock"), "capabilities": [] } })
}

/// The reply to `query-version`.
pub fn version(package: &str) -> Value {
    json!({ "qemu": { "major": 0, "minor": 1, "micro": 0 }, "package": package })
}
