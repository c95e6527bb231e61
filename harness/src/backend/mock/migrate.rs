//! The mock's implementation of an update.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use cpr_qmp::message::QmpError;
use cpr_qmp::migration::{MigMode, MigrationStatus};
use cpr_qmp::run_state::RunState;
use nix::unistd::{ForkResult, fork};
use serde_json::{Value, json};

use super::Fault;
use super::fault::{A_MOMENT, TOO_LONG};
use super::handover::{Handover, UnderWay};
use super::keeper::Keeper;
use super::machine::Machine;

/// The magic that a real VMM's state begins with.
const STATE: &[u8] = b"CPRSTAT\n";

/// A realistic size of a VMM's state; enough to fill a small file system.
const STATE_BYTES: usize = 64 << 10;

impl Machine {
    /// The reply to `query-migrate`.
    pub fn query_migrate(&self) -> Value {
        let mut answer = json!({});
        if self.status != MigrationStatus::None {
            let wrong = self.args.has(Fault::WrongMigrateStatus);
            let status = if wrong { MigrationStatus::Active } else { self.status };
            answer["status"] = json!(status);
        }
        if let Some(error) = &self.error {
            answer["error-desc"] = json!(error);
        }
        if !self.args.shared_ram() && self.mode != MigMode::Normal {
            answer["blocked-reasons"] = json!(["RAM block pc.ram is not shared"]);
        }
        answer
    }

    /// Refuses an update that cannot work, before the guest stops.
    pub fn check_update(&mut self, uri: &str) -> Result<(), QmpError> {
        let stop = |fault, time| self.args.has(fault).then_some(time);
        let stop = stop(Fault::StopToRefuse, TOO_LONG).or(stop(Fault::PauseToRefuse, A_MOMENT));
        if let Some(time) = stop.filter(|_| self.run_state == RunState::Running) {
            self.guest.set_running(false);
            std::thread::sleep(time);
            self.guest.set_running(true);
        }
        let refuse = |why: String| Err(QmpError::generic(why));
        if self.mode != MigMode::CprExec {
            return refuse("the mock only updates in mode cpr-exec".into());
        }
        match self.command.first().map(String::as_str) {
            None if self.command_was_set => {
                return refuse("cpr-exec-command is an empty list".into());
            }
            None => return refuse("cpr-exec mode requires setting cpr-exec-command".into()),
            Some("") => return refuse("cpr-exec-command: the first word is empty".into()),
            _ => {}
        }
        if self.command.iter().any(|word| word.contains('\0')) {
            return refuse("cpr-exec-command: a word holds a NUL".into());
        }
        if !self.args.shared_ram() {
            return refuse("cpr-exec needs shared RAM, and RAM block pc.ram is not shared".into());
        }
        let Some(path) = uri.strip_prefix("file:") else {
            return refuse(format!("{uri}: cpr-exec needs a file: channel"));
        };
        self.state_file(path)
            .and_then(|_| std::fs::remove_file(path))
            .or_else(|e| refuse(format!("cannot open {path}: {e}")))?;
        self.error = Some(path.to_owned());
        Ok(())
    }

    /// Runs an update; returns only if it fails.
    pub fn update(&mut self) {
        let channel = self.error.take().unwrap_or_default();
        let before = self.run_state;
        self.under_way = Some(UnderWay { before, stopped: false });
        self.keep_in_update();
        self.set_status(MigrationStatus::Setup);
        self.pause(RunState::FinishMigrate);
        self.set_status(MigrationStatus::Active);
        self.reach("save");
        let error = self.save(&channel).err().map(|e| format!("cannot write {channel}: {e}"));
        let error = error.unwrap_or_else(|| {
            self.set_status(MigrationStatus::Device);
            match self.args.has(Fault::PretendToExec) && Path::new(&self.command[0]).exists() {
                true => String::new(),
                false => self.exec(before),
            }
        });
        let pretended = self.args.has(Fault::PretendToExec) && error.is_empty();
        // The file may not exist if the state could not be written.
        let _ = std::fs::remove_file(&channel);
        self.error = Some(error);
        if pretended || self.args.has(Fault::SuccessForFailure) {
            self.error = None;
            self.mode = MigMode::Normal;
            self.command.clear();
            self.restore(before);
            self.set_status(MigrationStatus::Completed);
        } else {
            if self.args.has(Fault::ForgetParameters) {
                self.mode = MigMode::Normal;
                self.command.clear();
            }
            self.set_status(MigrationStatus::Failed);
            self.restore(before);
        }
        // It fails only if the checkpoint cannot be written; then no keeper can continue the VM.
        let _ = self.update_is_over();
    }

    /// Runs the action armed at `point`.
    pub(super) fn reach(&mut self, point: &str) {
        if !self.args.has(Fault::PassFailpoints) {
            self.armed.at(point, &self.log);
        }
    }

    fn restore(&mut self, before: RunState) {
        if before == RunState::Running {
            self.unpause();
        }
    }

    fn save(&self, channel: &str) -> io::Result<()> {
        let mut file = self.state_file(channel)?;
        file.write_all(STATE)?;
        file.write_all(&vec![0; STATE_BYTES])
    }

    fn state_file(&self, path: &str) -> io::Result<File> {
        let mode = if self.args.has(Fault::OpenState) { 0o644 } else { 0o600 };
        File::options().write(true).create(true).truncate(true).mode(mode).open(path)
    }

    /// Executes the new binary; returns the error.
    fn exec(&mut self, before: RunState) -> String {
        let handover = Handover {
            run_state: before,
            updates: self.updates + 1,
            keeper: self.keeper.as_ref().map(Keeper::pid),
            ..self.handover()
        };
        let mut command = self.command.clone();
        match self.args.fault {
            Some(Fault::FlipByte) => drop(self.guest.flip_byte()),
            Some(Fault::FlipLowByte) => drop(self.guest.flip_low_byte()),
            Some(Fault::Hang) => loop {
                std::thread::park();
            },
            Some(Fault::Die) => std::process::exit(3),
            Some(Fault::ChangePid) => go_on_in_a_child(),
            Some(Fault::OtherExecutable) => {
                let copy = self.args.log_file.with_file_name("other-vmm");
                if std::fs::copy(&command[0], &copy).is_ok() {
                    command[0] = copy.to_string_lossy().into_owned();
                }
            }
            // SAFETY: no other thread reads or writes the environment.
            Some(Fault::AddVariable) => unsafe { std::env::set_var("MOCK_VMM", "1") },
            _ => {}
        }
        let error = handover.exec(&command, self.args.has(Fault::KeepInheritable));
        let name = if self.args.has(Fault::NamelessError) { "it" } else { &command[0] };
        let why = match self.args.has(Fault::ErrorWithoutErrno) {
            true => "operation failed".to_owned(),
            false => error.to_string(),
        };
        if self.args.has(Fault::EmptyError) {
            return String::new();
        }
        format!("cannot execute {name}: {why}")
    }
}

fn go_on_in_a_child() {
    // SAFETY: the child does nothing but exec.
    if let Ok(ForkResult::Parent { .. }) = unsafe { fork() } {
        std::process::exit(0);
    }
}
