//! The mock's QMP server: a single loop in one thread.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use cpr_qmp::message::QmpError;
use cpr_qmp::migration::MigMode;
use cpr_qmp::run_state::RunState;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::{Value, json};

use super::Fault;
use super::machine::{Answer, Client, Machine, greeting, version};
use super::waiting::Waiting;

/// The query commands that `query-commands` lists.
const QUERIES: [&str; 7] = [
    "query-commands",
    "query-version",
    "query-status",
    "query-migrate",
    "query-migrate-parameters",
    "query-migrate-capabilities",
    "query-failpoints",
];

/// Serves until `quit`.
pub fn serve(mut machine: Machine) -> io::Result<ExitCode> {
    let ends = SignalFd::with_flags(&endings(), SfdFlags::SFD_CLOEXEC)?;
    loop {
        if execute_pending(&mut machine)? {
            if machine.run_state == RunState::Postmigrate && machine.args.has(Fault::StayAfterQuit)
            {
                stay();
            }
            // The keeper must not see this process end.
            drop(machine.keeper.take());
            if !machine.args.has(Fault::KeepSocket) {
                std::fs::remove_file(machine.args.socket())?;
            }
            if let Some(path) = machine.args.serial_socket()
                && !machine.args.has(Fault::KeepSerialSocket)
            {
                std::fs::remove_file(path)?;
            }
            if !machine.args.has(Fault::KeepPidFile) {
                std::fs::remove_file(&machine.args.pid_file)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        machine.checkpoint()?;
        let sources = [machine.listener.as_fd(), ends.as_fd()]
            .into_iter()
            .chain(machine.clients.iter().map(|c| c.stream.as_fd()))
            .chain(machine.serial_clients.iter().map(AsFd::as_fd))
            .chain(machine.serial.iter().map(AsFd::as_fd))
            .chain(machine.waiting.iter().map(Waiting::source));
        let mut waits: Vec<PollFd<'_>> =
            sources.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        poll(&mut waits, PollTimeout::NONE)?;
        let ready: Vec<bool> = waits.iter().map(|w| w.any().unwrap_or(false)).collect();
        let serials = machine.serial_clients.len() + usize::from(machine.serial.is_some());
        let from = 2 + machine.clients.len();
        let serial = ready[from..from + serials].to_vec();
        let acted = ready.get(from + serials) == Some(&true);
        talk(&mut machine, &serial)?;
        // From the back, so that removing a client does not move those still to be read.
        for index in (0..machine.clients.len()).rev().filter(|i| ready[i + 2]) {
            let mut part = vec![0; 1 << 16];
            match machine.clients[index].stream.read(&mut part) {
                Ok(0) | Err(_) => drop(machine.clients.remove(index)),
                Ok(n) => machine.clients[index].input.extend_from_slice(&part[..n]),
            }
        }
        if acted {
            machine.continue_transfer()?;
        }
        if ready[1] {
            machine.emit("SHUTDOWN", Some(json!({ "guest": false, "reason": "host-signal" })));
            machine.ends = true;
        }
        if ready[0] {
            let (stream, _) = machine.listener.accept()?;
            let mut client = Client { stream, input: Vec::new() };
            client.send(&greeting().to_string())?;
            machine.clients.push(client);
        }
    }
}

/// Never ends.
fn stay() -> ! {
    loop {
        std::thread::park();
    }
}

/// Accepts and drops clients of the serial port, and sends lines to those that sent some. `ready`
/// has one entry for each client, and the listener's last.
fn talk(machine: &mut Machine, ready: &[bool]) -> io::Result<()> {
    for index in (0..machine.serial_clients.len()).rev().filter(|index| ready[*index]) {
        let mut client = machine.serial_clients.remove(index);
        if matches!(client.read(&mut [0; 64]), Ok(1..)) && send_lines(machine, &client).is_ok() {
            machine.serial_clients.push(client);
        }
    }
    if let Some(listener) = machine.serial.as_ref().filter(|_| ready.last() == Some(&true)) {
        let (client, _) = listener.accept()?;
        (&client).write_all(b"\n")?;
        send_lines(machine, &client)?;
        machine.serial_clients.push(client);
    }
    Ok(())
}

fn send_lines(machine: &mut Machine, mut client: &UnixStream) -> io::Result<()> {
    for step in [1, 1 + u32::from(machine.args.has(Fault::SkipSerialLine))] {
        machine.serial_line += step;
        client.write_all(format!("{:08x}\n", machine.serial_line).as_bytes())?;
    }
    Ok(())
}

/// The signals that end the mock. Every thread must block them.
pub fn endings() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])
}

/// Executes every complete line of input; returns true after `quit`.
fn execute_pending(machine: &mut Machine) -> io::Result<bool> {
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
            let busy = machine.args.has(Fault::RefuseInRace)
                && name == "migrate"
                && !machine.clients[index].input.is_empty();
            let answer = match busy {
                true => Err(QmpError::generic("busy")),
                false => execute(machine, &name, &message["arguments"]),
            };
            let accepted = answer.is_ok();
            let mut reply = match answer {
                Ok(value) => json!({ "return": value }),
                Err(error) => json!({ "error": error }),
            };
            reply["id"] = message["id"].clone();
            machine.clients[index].send(&reply.to_string())?;
            if machine.args.has(Fault::AnswerTwice) && name == "migrate" {
                machine.clients[index].send(&reply.to_string())?;
            }
            machine.asked = None;
            machine.checkpoint()?;
            if name == "quit" {
                let other = machine.args.has(Fault::OtherReason);
                let reason = if other { "host-signal" } else { "host-qmp-quit" };
                machine.emit("SHUTDOWN", Some(json!({ "guest": false, "reason": reason })));
                return Ok(true);
            }
            if name == "migrate" && accepted {
                match machine.waiting {
                    Some(_) => machine.send_ram(),
                    None => machine.update(),
                }
            }
        }
    }
    Ok(false)
}

fn take_line(input: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = input.iter().position(|b| *b == b'\n')? + 1;
    Some(input.drain(..end).collect())
}

fn execute(machine: &mut Machine, name: &str, arguments: &Value) -> Answer {
    match name {
        "qmp_capabilities" | "quit" => {}
        "query-version" => {
            let other = machine.args.has(Fault::OtherAnswer) && machine.args.takes_over();
            return Ok(version(if other { "another" } else { "mock" }));
        }
        "query-commands" => {
            return Ok(QUERIES.iter().map(|name| json!({ "name": name })).collect());
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
        "query-migrate-capabilities" => {
            return Ok(json!([{ "capability": "events", "state": machine.events }]));
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
        "migrate" if machine.mode == MigMode::CprTransfer => {
            machine.begin_transfer(&arguments["channels"])?;
        }
        "migrate_cancel" => machine.cancel_transfer(),
        "migrate" if arguments.get("channels").is_some() => {
            return Err(QmpError::generic("Channel list has no main entry"));
        }
        "x-audit" => return Ok(json!([{ "name": "vcpu0.dr0", "value": machine.register() }])),
        "query-failpoints" => return Ok(machine.armed.list()),
        "x-set-failpoint" => {
            let word = |name: &str| arguments[name].as_str().unwrap_or_default();
            machine.armed.arm(word("point"), word("action"));
        }
        "migrate" => machine.check_update(arguments["uri"].as_str().unwrap_or_default())?,
        other => return Err(QmpError::command_not_found(other)),
    }
    Ok(json!({}))
}
