//! Tests many QMP clients, cancellation, and exhausted resources.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use cpr_qmp::run_state::RunState;
use serde_json::{Value, json};
use support::trials::{self, kvm, trials};
use support::{PATIENCE, Scene, Vm, until};

fn main() -> ExitCode {
    trials::run(trials![kvm();
        client_can_cancel_its_own_rehearsal,
        cancellation_is_found_behind_other_commands,
        running_rehearsal_is_reported,
        client_is_told_when_descriptors_run_out,
        client_is_served_once_descriptors_are_free,
        idle_clients_are_evicted_for_new_ones,
        client_that_waits_for_an_answer_is_not_evicted,
        messages_are_answered_without_address_space,
    ])
}

const GUEST: &str = "--kernel DIR/heartbeat --memory 16M";

/// A client that sends and receives raw messages.
struct Wire {
    lines: BufReader<UnixStream>,
}

impl Wire {
    /// Connects; the greeting is still to be read.
    fn unread(scene: &Scene) -> Self {
        let stream = UnixStream::connect(scene.path("qmp")).expect("the VMM listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket has a timeout");
        Self { lines: BufReader::new(stream) }
    }

    /// Connects and reads the greeting; negotiation is still to come.
    fn greeted(scene: &Scene) -> Self {
        let mut wire = Self::unread(scene);
        assert!(wire.line().get("QMP").is_some());
        wire
    }

    fn new(scene: &Scene) -> Self {
        let mut wire = Self::greeted(scene);
        wire.ask("qmp_capabilities", json!({}));
        wire
    }

    fn send(&mut self, text: &str) {
        self.lines.get_mut().write_all(text.as_bytes()).expect("the VMM accepts it");
    }

    /// Returns the next message that is not an event.
    fn line(&mut self) -> Value {
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).expect("the VMM answers");
            assert!(!line.is_empty(), "the VMM hung up");
            let message: Value = serde_json::from_str(&line).expect("it is JSON");
            if message.get("event").is_none() {
                return message;
            }
        }
    }

    fn ask(&mut self, name: &str, arguments: Value) -> Value {
        self.send(&request(name, arguments));
        let answer = self.line();
        answer.get("return").unwrap_or_else(|| panic!("{name}: {answer}")).clone()
    }

    /// Returns everything that the VMM sends before it hangs up.
    fn last_words(&mut self) -> String {
        let mut all = String::new();
        while self.lines.read_line(&mut all).is_ok_and(|bytes| bytes > 0) {}
        all
    }
}

fn request(name: &str, arguments: Value) -> String {
    json!({ "execute": name, "arguments": arguments, "id": name }).to_string()
}

/// Requests an update whose rehearsal runs until it is cancelled, followed by the commands `more`.
fn rehearsing(scene: &Scene, wire: &mut Wire, more: &[&str]) {
    let script = scene.script("slow", "#!/bin/sh\n: > \"${0%/*}/began\"\nexec sleep 1000\n");
    let parameters = json!({
        "mode": "cpr-exec",
        "cpr-exec-command": [script],
        "x-cpr-exec-rehearsal-timeout": 4 * PATIENCE.as_millis() as u64,
    });
    wire.ask("migrate-set-parameters", parameters);
    let uri = json!({ "uri": format!("file:{}", scene.path("state").display()) });
    let more: String = more.iter().map(|name| request(name, json!({}))).collect();
    wire.send(&(request("migrate", uri) + &more));
    until("the rehearsal", || scene.path("began").metadata().map(drop));
}

/// Checks that `migrate` is answered with an error that it was cancelled.
fn is_cancelled(wire: &mut Wire) {
    let answer = wire.line();
    assert_eq!(answer["id"], "migrate", "{answer}");
    assert_eq!(answer["error"]["desc"], "the update was cancelled");
}

fn client_can_cancel_its_own_rehearsal() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    let mut wire = Wire::new(&scene);
    rehearsing(&scene, &mut wire, &[]);
    wire.send(&request("migrate_cancel", json!({})));
    is_cancelled(&mut wire);
    assert_eq!(wire.line(), json!({ "return": {}, "id": "migrate_cancel" }));
    assert_eq!(support::process::children(vm.pid()), [0; 0]);
    assert_eq!(qmp.run_state(), RunState::Running);
    vm.update(&mut qmp);
}

fn cancellation_is_found_behind_other_commands() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    let mut wire = Wire::new(&scene);
    rehearsing(&scene, &mut wire, &["query-status", "query-migrate"]);
    // Answers keep the order of the requests.
    wire.send("{\"execute\": \"migr");
    assert_eq!(qmp.run_state(), RunState::Running);
    wire.send("ate_cancel\", \"id\": \"migrate_cancel\"}{\"execute\": \"query-name\", \"id\": 1}");
    is_cancelled(&mut wire);
    for id in [json!("query-status"), json!("query-migrate"), json!("migrate_cancel"), json!(1)] {
        let answer = wire.line();
        assert_eq!(answer["id"], id, "{answer}");
        assert!(answer.get("return").is_some(), "{answer}");
    }
}

fn running_rehearsal_is_reported() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    drop(vm.qmp());
    let (mut wire, mut other) = (Wire::new(&scene), Wire::new(&scene));
    let mut seen = || other.ask("query-migrate", json!({}));
    assert_eq!(seen(), json!({}));
    rehearsing(&scene, &mut wire, &[]);
    let during = seen();
    assert!(during["x-rehearsal-time"].is_u64(), "{during}");
    assert_eq!(during.get("status"), None, "no event has reported one");
    wire.send(&request("migrate_cancel", json!({})));
    is_cancelled(&mut wire);
    assert_eq!(seen(), json!({}));
}

/// Limits the number of the VMM's descriptors; returns the old limit.
fn limit_descriptors(vm: &Vm<'_>, soft: u64) -> u64 {
    limit(vm, libc::RLIMIT_NOFILE, soft)
}

/// Sets the VMM's soft limit of a resource; returns the old one.
fn limit(vm: &Vm<'_>, resource: libc::__rlimit_resource_t, soft: u64) -> u64 {
    let mut before = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both point to structures of our own.
    unsafe {
        let pid = vm.pid() as i32;
        let no_new = std::ptr::null();
        assert_eq!(libc::prlimit64(pid, resource, no_new, &mut before), 0);
        let new = libc::rlimit64 { rlim_cur: soft, ..before };
        let no_old = std::ptr::null_mut();
        assert_eq!(libc::prlimit64(pid, resource, &new, no_old), 0);
    }
    before.rlim_cur
}

/// Returns the CPU time of the VMM's main thread in clock ticks.
fn ticks(vm: &Vm<'_>) -> u64 {
    let pid = vm.pid();
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat")).expect("it exists");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name").1.split(' ').collect();
    [11, 12].iter().map(|n| fields[*n].parse::<u64>().expect("a number")).sum()
}

fn client_is_told_when_descriptors_run_out() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --paused"));
    drop(vm.qmp());
    let mut kept = vec![Wire::new(&scene)];
    let highest = support::process::descriptors(vm.pid()).into_keys().max().unwrap_or(0);
    let limit = limit_descriptors(&vm, highest as u64 + 1);
    // Some lower numbers may be free.
    let told = loop {
        let mut wire = Wire::unread(&scene);
        let first = wire.line();
        if first.get("QMP").is_none() {
            break first["error"]["desc"].to_string();
        }
        kept.push(wire);
    };
    assert!(told.contains("Too many open files") && told.contains("RLIMIT_NOFILE"), "{told}");
    for _ in 0..3 {
        assert!(Wire::unread(&scene).last_words().contains("Too many open files"));
    }
    assert_idle(&vm);
    kept[0].ask("query-status", json!({}));
    limit_descriptors(&vm, limit);
    Wire::new(&scene).ask("query-status", json!({}));
}

fn client_is_served_once_descriptors_are_free() {
    for others in [0, 1] {
        let scene = Scene::new();
        let mut vm = scene.start(&format!("{GUEST} --paused"));
        drop(vm.qmp());
        let kept: Vec<_> = (0..others).map(|_| Wire::new(&scene)).collect();
        let limit = limit_descriptors(&vm, 3);
        let mut waits = Wire::unread(&scene);
        assert_idle(&vm);
        let mut kept = kept;
        kept.iter_mut().for_each(|wire| drop(wire.ask("query-status", json!({}))));
        limit_descriptors(&vm, limit);
        assert!(waits.line().get("QMP").is_some());
        drop(kept);
    }
}

/// Checks that the main thread uses almost no CPU time for 300 ms.
fn assert_idle(vm: &Vm<'_>) {
    let before = ticks(vm);
    std::thread::park_timeout(Duration::from_millis(300));
    assert!(ticks(vm) - before < 10, "the main loop spins");
}

fn idle_clients_are_evicted_for_new_ones() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    drop(vm.qmp());
    let mut first = Wire::new(&scene);
    let mut silent: Vec<_> = (0..63).map(|_| Wire::greeted(&scene)).collect();
    first.ask("query-status", json!({}));
    // It replaces a client that has not negotiated.
    let mut next = Wire::new(&scene);
    next.ask("query-status", json!({}));
    let told = silent[0].last_words();
    assert!(told.contains("64") && told.contains("idle"), "{told}");
    let mut rest: Vec<_> = (0..62).map(|_| Wire::new(&scene)).collect();
    // All have negotiated now: the longest idle is disconnected.
    first.ask("query-status", json!({}));
    Wire::new(&scene).ask("query-status", json!({}));
    drop(Wire::new(&scene));
    first.ask("query-status", json!({}));
    rest[61].ask("query-status", json!({}));
    assert!(next.last_words().contains("idle"));
}

fn client_that_waits_for_an_answer_is_not_evicted() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    drop(vm.qmp());
    let mut waits = Wire::new(&scene);
    rehearsing(&scene, &mut waits, &[]);
    let many: Vec<_> = (0..100).map(|_| Wire::new(&scene)).collect();
    waits.send(&request("migrate_cancel", json!({})));
    is_cancelled(&mut waits);
    drop(many);
}

/// A failed allocation would abort the process, and with it the guest.
fn messages_are_answered_without_address_space() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    drop(vm.qmp());
    let mut wires: Vec<Wire> = (0..3).map(|_| Wire::new(&scene)).collect();
    // The vCPU's thread, which needs a stack, has started by then.
    wires[0].ask("stop", json!({}));
    let limit_before = limit(&vm, libc::RLIMIT_AS, 16 << 20);
    // As many values as fit in one message, flat and nested.
    let flat = json!(vec![1; 130_000]);
    let chain = (0..90).fold(json!([]), |inner, _| json!([inner]));
    let nested = json!(vec![chain; 1300]);
    for (wire, values) in wires.iter_mut().zip([&flat, &nested, &flat]) {
        let command = json!({ "execute": "query-status", "id": values });
        wire.send(&command.to_string());
        assert_eq!(wire.line()["id"], json!(values));
    }
    assert!(!vm.has_ended() && vm.stderr().contains("memory_reserve_used"), "{}", vm.stderr());
    limit(&vm, libc::RLIMIT_AS, limit_before);
}
