//! The mock's QMP server: one thread, one loop.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::process::ExitCode;

use cpr_qmp::message::QmpError;
use cpr_qmp::migration::MigMode;
use cpr_qmp::run_state::RunState;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::{Value, json};

use super::Fault;
use super::machine::{Answer, Client, Machine};

/// Serves until `quit`.
pub fn serve(mut machine: Machine) -> io::Result<ExitCode> {
    let ends = SignalFd::with_flags(&endings(), SfdFlags::SFD_CLOEXEC)?;
    loop {
        if obey_all(&mut machine)? {
            // Before it can see the end.
            drop(machine.keeper.take());
            if !machine.args.has(Fault::KeepSocket) {
                std::fs::remove_file(machine.args.socket())?;
            }
            if !machine.args.has(Fault::KeepPidFile) {
                std::fs::remove_file(&machine.args.pid_file)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        machine.checkpoint()?;
        let sources = [machine.listener.as_fd(), ends.as_fd()]
            .into_iter()
            .chain(machine.clients.iter().map(|c| c.stream.as_fd()));
        let mut waits: Vec<PollFd<'_>> =
            sources.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        poll(&mut waits, PollTimeout::NONE)?;
        let ready: Vec<bool> = waits.iter().map(|w| w.any().unwrap_or(false)).collect();
        // Clients from the back, so that removing one moves none that is still to come.
        for index in (0..machine.clients.len()).rev().filter(|i| ready[i + 2]) {
            let mut part = vec![0; 1 << 16];
            match machine.clients[index].stream.read(&mut part) {
                Ok(0) | Err(_) => drop(machine.clients.remove(index)),
                Ok(n) => machine.clients[index].input.extend_from_slice(&part[..n]),
            }
        }
        if ready[1] {
            machine.emit("SHUTDOWN", Some(json!({ "guest": false, "reason": "host-signal" })));
            machine.ends = true;
        }
        if ready[0] {
            let (stream, _) = machine.listener.accept()?;
            let version =
                json!({ "qemu": { "major": 0, "minor": 1, "micro": 0 }, "package": "mock" });
            let greeting = json!({ "QMP": { "version": version, "capabilities": [] } });
            let mut client = Client { stream, input: Vec::new() };
            client.send(&greeting.to_string())?;
            machine.clients.push(client);
        }
    }
}

/// Signals that ask the mock to end. Every thread must have them blocked.
pub fn endings() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])
}

/// Obeys every whole line that is there; true after `quit`.
fn obey_all(machine: &mut Machine) -> io::Result<bool> {
    if machine.ends {
        return Ok(true);
    }
    for index in 0..machine.clients.len() {
        while let Some(line) = take_line(&mut machine.clients[index].input) {
            let message: Value = serde_json::from_slice(&line).unwrap_or_default();
            let name = message["execute"].as_str().unwrap_or_default().to_owned();
            let number = machine.clients[index].stream.as_raw_fd();
            machine.asked = Some((number, message["id"].clone()));
            machine.checkpoint()?;
            let answer = obey(machine, &name, &message["arguments"]);
            let accepted = answer.is_ok();
            let mut reply = match answer {
                Ok(value) => json!({ "return": value }),
                Err(error) => json!({ "error": error }),
            };
            reply["id"] = message["id"].clone();
            machine.clients[index].send(&reply.to_string())?;
            machine.asked = None;
            machine.checkpoint()?;
            if name == "quit" {
                let other = machine.args.has(Fault::OtherReason);
                let reason = if other { "host-signal" } else { "host-qmp-quit" };
                machine.emit("SHUTDOWN", Some(json!({ "guest": false, "reason": reason })));
                return Ok(true);
            }
            if name == "migrate" && accepted {
                machine.update();
            }
        }
    }
    Ok(false)
}

fn take_line(input: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = input.iter().position(|b| *b == b'\n')? + 1;
    Some(input.drain(..end).collect())
}

fn obey(machine: &mut Machine, name: &str, arguments: &Value) -> Answer {
    match name {
        "qmp_capabilities" | "quit" => {}
        "query-version" => {
            return Ok(
                json!({ "qemu": { "major": 0, "minor": 1, "micro": 0 }, "package": "mock" }),
            );
        }
        "query-status" => return Ok(json!(machine.status_info())),
        "stop" => machine.pause(RunState::Paused),
        "cont" => machine.unpause(),
        "system_reset" => machine.reset(),
        "query-cpus-fast" => return Ok(machine.query_cpus()),
        "query-migrate" => return Ok(machine.query_migrate()),
        "query-migrate-parameters" => {
            return Ok(json!({ "mode": machine.mode, "cpr-exec-command": machine.command }));
        }
        "migrate-set-capabilities" => {
            machine.events = arguments["capabilities"][0]["state"].as_bool().unwrap_or(false);
        }
        "migrate-set-parameters" => {
            let parse = |e: serde_json::Error| QmpError::generic(e.to_string());
            if let Some(mode) = arguments.get("mode") {
                machine.mode = serde_json::from_value::<MigMode>(mode.clone()).map_err(parse)?;
            }
            if let Some(command) = arguments.get("cpr-exec-command") {
                machine.command = serde_json::from_value(command.clone()).map_err(parse)?;
                machine.command_was_set = true;
            }
        }
        "migrate" if arguments.get("channels").is_some() => {
            return Err(QmpError::generic("Channel list has no main entry"));
        }
        "x-audit" => return Ok(json!([{ "name": "vcpu0.dr0", "value": machine.register() }])),
        "query-failpoints" => return Ok(machine.armed.list()),
        "x-set-failpoint" => machine.armed.arm(arguments["point"].as_str().unwrap_or_default()),
        "migrate" => machine.check_update(arguments["uri"].as_str().unwrap_or_default())?,
        other => return Err(QmpError::command_not_found(other)),
    }
    Ok(json!({}))
}
