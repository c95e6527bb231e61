use std::process::{Child, Command as Program, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::channel;

use cpr_qmp::run_state::{RunState, StatusInfo};
use serde_json::{Value, json};

use super::*;
use crate::backend::control::Move;
use crate::observe::qmp::{Command, Qmp, QmpFault, label};

const LIMIT: Duration = Duration::from_secs(20);

/// A VMM that does what the test tells it.
struct Scripted {
    state: Mutex<RunState>,
    report: Mutex<Sender<Happened>>,
    reports: Mutex<Receiver<Happened>>,
    /// Results of `send` and `receive`.
    results: Mutex<Receiver<Result<(), ControlError>>>,
}

impl Scripted {
    fn set(&self, state: RunState, report: Happened) -> Result<(), ControlError> {
        *self.state.lock().unwrap() = state;
        self.report.lock().unwrap().send(report).unwrap();
        Ok(())
    }

    fn result(&self) -> Result<(), ControlError> {
        self.results.lock().unwrap().recv_timeout(LIMIT).unwrap()
    }
}

impl Control for Scripted {
    fn ready(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn state(&self) -> Result<RunState, ControlError> {
        Ok(*self.state.lock().unwrap())
    }

    fn stop(&self) -> Result<(), ControlError> {
        self.set(RunState::Paused, Happened::Stopped)
    }

    fn cont(&self) -> Result<(), ControlError> {
        self.set(RunState::Running, Happened::Resumed)
    }

    fn reset(&self) -> Result<(), ControlError> {
        self.set(RunState::Running, Happened::Reset)
    }

    fn power_down(&self) -> Result<(), ControlError> {
        Err(ControlError::new("press the power button", "there is none"))
    }

    fn nmi(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn quit(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn vcpu_threads(&self) -> Result<Vec<i32>, ControlError> {
        Ok(vec![11, 12])
    }

    fn send(&self, to: &Move) -> Result<(), ControlError> {
        assert_eq!(to.channels.first(), "/there");
        self.result()
    }

    fn receive(&self, _channels: &Channels) -> Result<(), ControlError> {
        self.result()
    }

    fn next(&self, limit: Duration) -> Result<Happened, RecvTimeoutError> {
        self.reports.lock().unwrap().recv_timeout(limit)
    }
}

/// A scripted VMM behind a gateway, and a client.
struct Bench {
    process: Child,
    vmm: Arc<Scripted>,
    ends: Sender<Result<(), ControlError>>,
    qmp: Qmp,
    socket: PathBuf,
    _gateway: Gateway,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new(incoming: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp.sock");
        let process = Program::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        let (report, reports) = channel();
        let (ends, results) = channel();
        let vmm = Arc::new(Scripted {
            state: Mutex::new(RunState::Running),
            report: Mutex::new(report),
            reports: Mutex::new(reports),
            results: Mutex::new(results),
        });
        let channels = incoming.then(|| Channels::file("/there".into()));
        let pid = process.id() as i32;
        let gateway = Gateway::serve(vmm.clone(), "scripted 1", &socket, pid, channels).unwrap();
        let qmp = Qmp::connect(&socket, LIMIT, Arc::new(|_, _| {}), || None).unwrap();
        Self { process, vmm, ends, qmp, socket, _gateway: gateway, _folder: folder }
    }

    fn run(&mut self, name: &'static str) {
        self.qmp.execute(Command::plain(name)).unwrap();
    }

    fn state(&mut self) -> RunState {
        self.qmp.query::<StatusInfo>("query-status").unwrap().status
    }

    fn await_label(&self, wanted: &str) {
        self.qmp.await_event(0, wanted, LIMIT, |event| label(event) == wanted).unwrap();
    }

    fn events(&self) -> Vec<String> {
        self.qmp.events_from(0).iter().map(|arrived| label(&arrived.event)).collect()
    }

    fn begin_update(&mut self) {
        let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        self.qmp.execute(Command::new("migrate-set-capabilities", events)).unwrap();
        let mode = json!({ "mode": "cpr-transfer" });
        self.qmp.execute(Command::new("migrate-set-parameters", mode)).unwrap();
        let channel = |kind: &str| {
            json!({ "channel-type": kind,
                    "addr": { "transport": "socket", "type": "unix", "path": "/there" } })
        };
        let channels = json!({ "channels": [channel("main"), channel("cpr")] });
        self.qmp.execute(Command::new("migrate", channels)).unwrap();
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn reports_become_events_and_requests_are_passed_on() {
    let mut bench = Bench::new(false);
    assert_eq!(bench.qmp.greeting().unwrap().version.package, "scripted 1");
    bench.run("stop");
    bench.await_label("STOP");
    assert_eq!(bench.state(), RunState::Paused);
    // A guest that is stopped already is not stopped again.
    bench.run("stop");
    bench.run("cont");
    bench.run("system_reset");
    bench.await_label("RESET");
    assert_eq!(bench.events(), ["STOP", "RESUME", "RESET"]);
    let refused = bench.qmp.execute(Command::plain("system_powerdown")).unwrap_err();
    assert!(refused.to_string().contains("cannot press the power button: there is none"));
    let unknown = bench.qmp.execute(Command::plain("query-name")).unwrap_err();
    assert!(matches!(unknown, QmpFault::Refused { .. }), "{unknown}");
    let vcpus: Value = bench.qmp.query("query-cpus-fast").unwrap();
    assert_eq!(vcpus[1]["thread-id"], 12);
    assert_eq!(bench.qmp.violations(), Vec::<String>::new());
}

#[test]
fn vmm_that_has_given_its_vm_up_may_end_by_itself() {
    let mut bench = Bench::new(false);
    bench.begin_update();
    let again = bench.qmp.execute(Command::new("migrate", json!({ "uri": "unix:/there" })));
    assert!(again.unwrap_err().to_string().contains("in progress"));
    bench.vmm.set(RunState::Paused, Happened::Stopped).unwrap();
    bench.await_label("MIGRATION(device)");
    assert_eq!(bench.state(), RunState::FinishMigrate);
    bench.ends.send(Ok(())).unwrap();
    bench.await_label("MIGRATION(completed)");
    bench.kill();
    assert_eq!(bench.state(), RunState::Postmigrate);
    let refused = bench.qmp.execute(Command::plain("cont")).unwrap_err();
    assert!(refused.to_string().contains("another VMM runs it"), "{refused}");
    bench.run("quit");
    bench.qmp.await_end(LIMIT).unwrap();
    assert!(!bench.socket.exists());
    let expected = [
        "MIGRATION(setup)",
        "STOP",
        "MIGRATION(active)",
        "MIGRATION(device)",
        "MIGRATION(completed)",
        "SHUTDOWN",
    ];
    assert_eq!(bench.events(), expected);
}

#[test]
fn guest_that_resumes_before_the_failure_is_known_resumes_after_it() {
    let mut bench = Bench::new(false);
    bench.begin_update();
    bench.vmm.set(RunState::Paused, Happened::Stopped).unwrap();
    bench.vmm.set(RunState::Running, Happened::Resumed).unwrap();
    // All reports have been heard with the next reply.
    bench.await_label("MIGRATION(device)");
    bench.ends.send(Err(ControlError::new("move", "the other side is gone"))).unwrap();
    bench.await_label("RESUME");
    let events = bench.events();
    assert_eq!(events[events.len() - 2..], ["MIGRATION(failed)", "RESUME"]);
    let told: Value = bench.qmp.query("query-migrate").unwrap();
    assert_eq!(told["error-desc"], "cannot move: the other side is gone");
    assert_eq!(bench.state(), RunState::Running);
}

/// Its end may be noticed before the result of the update.
#[test]
fn vmm_may_end_before_its_update_is_known_to_have_completed() {
    let mut bench = Bench::new(false);
    bench.begin_update();
    bench.kill();
    std::thread::sleep(DRAINED + SILENCE);
    bench.ends.send(Ok(())).unwrap();
    bench.await_label("MIGRATION(completed)");
    assert_eq!(bench.state(), RunState::Postmigrate);
}

#[test]
fn connections_end_with_the_process() {
    let mut bench = Bench::new(false);
    bench.kill();
    bench.qmp.await_end(LIMIT).unwrap();
    assert!(!bench.socket.exists());
}

#[test]
fn vm_is_not_here_before_it_has_arrived() {
    let mut bench = Bench::new(true);
    assert_eq!(bench.state(), RunState::Inmigrate);
    bench.ends.send(Ok(())).unwrap();
    let arrived = crate::observe::poll::until(crate::observe::poll::Deadline::after(LIMIT), || {
        (bench.state() == RunState::Running).then_some(())
    });
    assert!(arrived.is_some());
    let told: Value = bench.qmp.query("query-migrate").unwrap();
    assert_eq!(told["status"], "completed");
}
