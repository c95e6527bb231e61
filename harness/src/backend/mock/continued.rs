//! Continues the mock in the process of its keeper, and saves the state that this needs.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use cpr_qmp::message::QmpError;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;
use guest_images::mailbox::damage_kind;
use serde_json::json;

use super::Fault;
use super::handover::{Handover, Peer, Revived};
use super::keeper::{self, Keeper};
use super::machine::Machine;
use super::start::write_pid_file;
use crate::scenario::Keeper as Policy;

impl Machine {
    /// Everything that another process needs to continue the VM.
    pub fn handover(&self) -> Handover {
        let peer = |client: &super::machine::Client| Peer {
            number: client.stream.as_raw_fd(),
            input: client.input.clone(),
        };
        Handover {
            ram: self.guest.ram().as_raw_fd(),
            listener: self.listener.as_raw_fd(),
            serial: self.serial.as_ref().map(AsRawFd::as_raw_fd),
            updates: self.updates,
            log: self.log.as_raw_fd(),
            checkpoint: self.checkpoint.number(),
            clients: self.clients.iter().map(peer).collect(),
            run_state: self.run_state,
            events: self.events,
            status: self.status,
            error: self.error.clone(),
            under_way: self.under_way,
            asked: self.asked.clone(),
            keeper: None,
            revived: None,
        }
    }

    /// Saves the current state for the keeper.
    pub fn checkpoint(&self) -> io::Result<()> {
        self.checkpoint.write(&serde_json::to_vec(&self.handover())?)
    }

    /// Starts the permanent keeper, with `--keeper on`.
    pub fn keep_always(&mut self) -> io::Result<()> {
        if self.args.keeper == Policy::On {
            self.start_keeper()?;
        }
        Ok(())
    }

    /// Starts the keeper of an update, with `--keeper update` and unless there is one.
    pub fn keep_in_update(&mut self) {
        if self.args.keeper == Policy::Update && self.keeper.is_none() {
            // On failure the update continues without a keeper.
            let _ = self.start_keeper();
        }
    }

    fn start_keeper(&mut self) -> io::Result<()> {
        // With a keeper the VM would survive these faults.
        if matches!(self.args.fault, Some(Fault::ChangePid | Fault::Die)) {
            return Ok(());
        }
        self.checkpoint()?;
        self.keeper = Some(Keeper::start(&self.args, &self.checkpoint)?);
        Ok(())
    }

    /// Ends the update's keeper once clients know that the update is over, and starts this
    /// process's permanent keeper.
    pub fn update_is_over(&mut self) -> io::Result<()> {
        self.under_way = None;
        self.checkpoint()?;
        drop(self.keeper.take());
        self.keep_always()
    }

    /// Continues the VM of a process that died.
    pub fn continue_here(&mut self, Revived { former, reason }: Revived) -> io::Result<()> {
        self.revived = true;
        let pid = std::process::id();
        let text = format!("process {former} ended ({reason}): the VM continues in process {pid}");
        if !self.args.has(Fault::SilentRevival) {
            eprintln!("cpr-vmm: {text}");
        }
        if !self.args.has(Fault::KeepOldPid) {
            write_pid_file(&self.args)?;
        }
        if let Some(socket) = std::env::var_os("NOTIFY_SOCKET") {
            UnixDatagram::unbound()?.send_to(format!("MAINPID={pid}").as_bytes(), socket)?;
        }
        match self.args.fault {
            Some(Fault::ReviveDamaged) => self.guest.damage(damage_kind::EXCEPTION),
            Some(Fault::ReviveFlipped) => self.guest.flip_byte()?,
            Some(Fault::KeepKeeper) => keeper::leave_a_false_one()?,
            Some(Fault::LoseClients) => self.clients.clear(),
            _ => {}
        }
        self.refuse_what_was_asked()?;
        let under_way = self.under_way.take();
        let late = self.args.has(Fault::LateRevival);
        let data = json!({ "pid": pid, "former-pid": former, "reason": reason });
        if !late {
            self.emit("X_CPR_CONTINUED", Some(data.clone()));
        }
        if let Some(update) = under_way {
            self.run_state = update.before;
            let nameless = self.args.has(Fault::NamelessRevival);
            self.error = Some(if nameless { reason } else { text });
            self.set_status(MigrationStatus::Failed);
        }
        self.guest.start(self.args.cpus, false)?;
        self.guest.set_running(self.run_state == RunState::Running);
        let stopped = under_way.is_some_and(|update| update.stopped);
        if stopped && self.run_state == RunState::Running {
            self.emit("RESUME", None);
        }
        if late {
            self.emit("X_CPR_CONTINUED", Some(data));
        }
        self.keep_always()
    }

    /// Replies with an error to the request that the process died in.
    fn refuse_what_was_asked(&mut self) -> io::Result<()> {
        let Some((number, id)) = self.asked.take() else { return Ok(()) };
        let asker = self.clients.iter_mut().find(|client| client.stream.as_raw_fd() == number);
        let error = QmpError::generic("the process that was asked has died");
        match asker {
            Some(client) => client.send(&json!({ "error": error, "id": id }).to_string()),
            None => Ok(()),
        }
    }
}
