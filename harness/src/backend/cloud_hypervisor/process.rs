//! One process of Cloud Hypervisor, controlled through its API.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use cpr_qmp::run_state::RunState;
use serde_json::json;

use super::api::Api;
use super::monitor::{Monitor, Report};
use crate::backend::Channels;
use crate::backend::channels::Main;
use crate::backend::control::{Control, ControlError, Happened, Move};
use crate::observe::patience::patient;
use crate::observe::poll::{self, Deadline};
use crate::scenario::Mode;

/// How long the process may take to start.
const READY: Duration = Duration::from_secs(10);
/// How long a request may take on a busy machine.
const ANSWER: Duration = Duration::from_secs(10);
/// How long an update may take: less than the client waits for its end.
const MOVED: Duration = Duration::from_secs(30);
/// How long a new process may wait for a VM.
const ARRIVED: Duration = Duration::from_secs(600);

/// How an update ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Finished,
    Failed,
    /// The process has ended or stopped reporting.
    Silent,
}

/// How the last update ended, once it has.
#[derive(Default)]
struct Ended {
    how: Mutex<Option<Ending>>,
    told: Condvar,
}

impl Ended {
    fn tell(&self, how: Ending) {
        *self.how.lock().unwrap_or_else(PoisonError::into_inner) = Some(how);
        self.told.notify_all();
    }

    /// Clears the result of the last update, unless the process has stopped reporting.
    fn forget(&self) {
        let mut how = self.how.lock().unwrap_or_else(PoisonError::into_inner);
        *how = how.filter(|how| *how == Ending::Silent);
    }

    fn wait(&self, limit: Duration) -> Option<Ending> {
        let how = self.how.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.told.wait_timeout_while(how, limit, |how| how.is_none());
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Tells, when it is dropped, that nothing more will be reported.
struct Reports(Arc<Ended>);

impl Drop for Reports {
    fn drop(&mut self) {
        // An update that has ended stays so.
        if self.0.wait(Duration::ZERO).is_none() {
            self.0.tell(Ending::Silent);
        }
    }
}

/// One process of Cloud Hypervisor.
pub(super) struct Process {
    api: Api,
    /// It waits for a VM, and has none.
    waits: bool,
    /// Its log, with the reasons that the API does not tell.
    log: PathBuf,
    reports: Mutex<Receiver<Happened>>,
    ended: Arc<Ended>,
    _monitor: Monitor,
}

impl Process {
    /// Prepares to control a process that is about to be started: it will serve the API on `socket` and
    /// report to the FIFO `events`. If it `waits`, it is started without a VM. Its log is in the file `log`.
    pub fn new(socket: PathBuf, events: &Path, log: PathBuf, waits: bool) -> std::io::Result<Self> {
        let (told, reports) = mpsc::channel();
        let ended = Arc::<Ended>::default();
        let ends = Reports(ended.clone());
        let mut passes = 0;
        let monitor = Monitor::start(events, move |report| match migration_ended(&report) {
            Some(how) => ends.0.tell(how),
            None => {
                let _ = happened(&report, &mut passes).map(|happened| told.send(happened));
            }
        })?;
        let reports = Mutex::new(reports);
        Ok(Self { api: Api { socket }, waits, log, reports, ended, _monitor: monitor })
    }

    /// Returns what the process said last, which is why an update failed.
    fn last_words(&self) -> String {
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = said.lines().rfind(|line| line.contains("Migration failed: "));
        let last = last.or_else(|| said.lines().last()).unwrap_or("it gives no reason");
        last.split_once("Migration failed: ").map_or(last, |(_, why)| why).to_owned()
    }

    fn put(&self, name: &str) -> Result<(), ControlError> {
        self.api.put(name, None, patient(ANSWER))
    }
}

/// How an update to another process has ended, if this report tells it.
fn migration_ended(report: &Report) -> Option<Ending> {
    match (&*report.source, &*report.event) {
        ("vm", "migration-finished") => Some(Ending::Finished),
        ("vm", "migration-failed") => Some(Ending::Failed),
        _ => None,
    }
}

fn happened(report: &Report, passes: &mut u64) -> Option<Happened> {
    if report.source != "vm" {
        return None;
    }
    Some(match &*report.event {
        "paused" => Happened::Stopped,
        "resumed" => Happened::Resumed,
        "rebooted" => Happened::Reset,
        "shutdown" => Happened::PoweredOff,
        "migration-started" => {
            *passes = 0;
            return None;
        }
        "migration-memory-iteration" => {
            *passes += 1;
            Happened::Pass(*passes)
        }
        _ => return None,
    })
}

impl Control for Process {
    /// The API is served a moment after the start, and the VM of the command line created a moment later.
    fn ready(&self) -> Result<(), ControlError> {
        let query = if self.waits { "vmm.ping" } else { "vm.info" };
        let mut last = None;
        let ready = poll::until(Deadline::after(patient(READY)), || {
            self.api.get(query, patient(ANSWER)).map_err(|error| last = Some(error)).ok()
        });
        let late =
            || last.unwrap_or_else(|| ControlError::new(format!("call {query}"), "no reply"));
        ready.map(drop).ok_or_else(late)
    }

    fn state(&self) -> Result<RunState, ControlError> {
        let info = self.api.get("vm.info", patient(ANSWER))?;
        match info["state"].as_str() {
            Some("Running") => Ok(RunState::Running),
            Some("Paused") => Ok(RunState::Paused),
            Some("Created") => Ok(RunState::Prelaunch),
            Some("Shutdown") => Ok(RunState::Shutdown),
            other => Err(ControlError::new("read the run state", format!("it is {other:?}"))),
        }
    }

    fn stop(&self) -> Result<(), ControlError> {
        self.put("vm.pause")
    }

    fn cont(&self) -> Result<(), ControlError> {
        self.put("vm.resume")
    }

    fn reset(&self) -> Result<(), ControlError> {
        self.put("vm.reboot")
    }

    fn power_down(&self) -> Result<(), ControlError> {
        self.put("vm.power-button")
    }

    fn nmi(&self) -> Result<(), ControlError> {
        self.put("vm.nmi")
    }

    fn quit(&self) -> Result<(), ControlError> {
        self.put("vmm.shutdown")
    }

    fn vcpu_threads(&self) -> Result<Vec<i32>, ControlError> {
        let failed = |why: String| ControlError::new("list the vCPUs", why);
        let info = self.api.get("vmm.ping", patient(ANSWER))?;
        let pid = info["pid"].as_i64().ok_or_else(|| failed(format!("ping says {info}")))?;
        let process =
            procfs::process::Process::new(pid as i32).map_err(|e| failed(e.to_string()))?;
        let tasks = process.tasks().map_err(|e| failed(e.to_string()))?;
        let number = |name: &str| name.strip_prefix("vcpu")?.parse::<u32>().ok();
        let vcpu = |task: procfs::process::Task| Some((number(&task.stat().ok()?.comm)?, task.tid));
        let mut threads: Vec<(u32, i32)> = tasks.flatten().filter_map(vcpu).collect();
        threads.sort_unstable();
        Ok(threads.into_iter().map(|(_, thread)| thread).collect())
    }

    fn send(&self, to: &Move) -> Result<(), ControlError> {
        let before = self.state()?;
        let limit = patient(MOVED);
        let body = json!({
            "destination_url": url(&to.channels.main)?,
            "local": to.mode == Mode::CprTransfer,
            "downtime_ms": to.downtime_limit_ms.max(1),
            "timeout_s": limit.as_secs(),
            "timeout_strategy": "Cancel",
        });
        let what = format!("move the VM to {}", to.channels.first());
        let failed = |why: &dyn std::fmt::Display| ControlError::new(&what, why);
        self.ended.forget();
        self.api.put("vm.send-migration", Some(&body), limit).map_err(|e| failed(&e))?;
        match self.ended.wait(limit) {
            Some(Ending::Finished) => Ok(()),
            Some(Ending::Silent) => Err(failed(&"the process reports no more")),
            None => Err(failed(&format!("{limit:?} later it has neither finished nor failed"))),
            Some(Ending::Failed) => {
                // Resumed a moment after the report.
                let mut gone = false;
                let back = poll::until(Deadline::after(patient(ANSWER)), || {
                    match self.state() {
                        Ok(state) => (state == before).then_some(true),
                        // A process that is ending refuses connections.
                        Err(_) if std::mem::replace(&mut gone, true) => Some(false),
                        Err(_) => None,
                    }
                });
                let lost = if back == Some(true) { "" } else { ", and the guest did not resume" };
                Err(failed(&format!("{}{lost}", self.last_words())))
            }
        }
    }

    fn receive(&self, channels: &Channels) -> Result<(), ControlError> {
        let body = json!({ "receiver_url": url(&channels.main)? });
        self.api.put("vm.receive-migration", Some(&body), ARRIVED)
    }

    fn next(&self, limit: Duration) -> Result<Happened, RecvTimeoutError> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(limit)
    }
}

/// The address of a channel, as the API takes it.
fn url(channel: &Main) -> Result<String, ControlError> {
    match channel {
        Main::Unix(path) => Ok(format!("unix:{path}")),
        Main::Tcp(port) => Ok(format!("tcp:127.0.0.1:{port}")),
        Main::File(path) => Err(ControlError::new(
            format!("move the VM through {path}"),
            "Cloud Hypervisor moves VMs through sockets only",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::thread::{self, JoinHandle};

    use super::*;

    /// Serves these replies, one a connection, and reports to `events` after the one of this number.
    /// Returns the first line and the body of each request.
    fn serve(
        folder: &Path,
        replies: &'static [&'static str],
        report: Option<(usize, &'static str)>,
    ) -> (Process, JoinHandle<Vec<String>>) {
        let (socket, events) = (folder.join("api"), folder.join("events"));
        let listener = UnixListener::bind(&socket).unwrap();
        let log = folder.join("log");
        std::fs::write(&log, "3s: ERROR -- Migration failed: no more room\nlast\n").unwrap();
        let process = Process::new(socket, &events, log, false).unwrap();
        let server = thread::spawn(move || {
            let mut fifo = std::fs::File::options().write(true).open(events).unwrap();
            let mut seen = Vec::new();
            for (number, reply) in replies.iter().enumerate() {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = vec![0; 4096];
                let bytes = stream.read(&mut request).unwrap();
                let text = String::from_utf8_lossy(&request[..bytes]).into_owned();
                let body = text.split("\r\n\r\n").nth(1).unwrap_or_default();
                let first = text.lines().next().unwrap_or_default();
                seen.push(format!("{first} {body}").trim_end().to_owned());
                stream.write_all(reply.as_bytes()).unwrap();
                for (_, event) in report.iter().filter(|(at, _)| *at == number) {
                    let text = format!("{{\"source\": \"vm\", \"event\": \"{event}\"}}\n\n");
                    fifo.write_all(text.as_bytes()).unwrap();
                }
            }
            seen
        });
        (process, server)
    }

    fn update() -> Move {
        let channels = Channels { main: Main::Unix("/there".into()), cpr: None };
        Move { mode: Mode::CprTransfer, channels, downtime_limit_ms: 300 }
    }

    const DONE: &str = "HTTP/1.1 204 \r\n\r\n";
    const RUNNING: &str = "HTTP/1.1 200 \r\nContent-Length: 19\r\n\r\n{\"state\":\"Running\"}";

    #[test]
    fn update_ends_with_the_report_of_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let report = Some((1, "migration-finished"));
        let (process, server) = serve(folder.path(), &[RUNNING, DONE], report);
        process.send(&update()).unwrap();
        let seen = server.join().unwrap();
        assert_eq!(seen[0], "GET /api/v1/vm.info HTTP/1.1");
        let (line, body) = seen[1].split_once(" HTTP/1.1 ").unwrap();
        assert_eq!(line, "PUT /api/v1/vm.send-migration");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(
            (&body["destination_url"], &body["local"]),
            (&json!("unix:/there"), &json!(true))
        );
    }

    #[test]
    fn failed_update_has_the_reason_of_the_log_once_the_guest_is_back() {
        let folder = tempfile::tempdir().unwrap();
        let report = Some((1, "migration-failed"));
        let (process, server) = serve(folder.path(), &[RUNNING, DONE, RUNNING], report);
        let error = process.send(&update()).unwrap_err().to_string();
        assert_eq!(error, "cannot move the VM to /there: no more room");
        assert_eq!(server.join().unwrap().len(), 3);
    }

    #[test]
    fn process_that_ends_in_an_update_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (process, server) = serve(folder.path(), &[RUNNING, DONE], None);
        let error = process.send(&update()).unwrap_err().to_string();
        assert_eq!(error, "cannot move the VM to /there: the process reports no more");
        server.join().unwrap();
    }

    #[test]
    fn refused_update_has_the_reason_of_the_reply() {
        const REFUSED: &str = "HTTP/1.1 500 \r\nContent-Length: 16\r\n\r\n[\"it is paused\"]";
        let folder = tempfile::tempdir().unwrap();
        let (process, server) = serve(folder.path(), &[RUNNING, REFUSED], None);
        let error = process.send(&update()).unwrap_err().to_string();
        assert!(error.ends_with("status 500: it is paused"), "{error}");
        server.join().unwrap();
    }

    #[test]
    fn reports_are_passed_on() {
        let folder = tempfile::tempdir().unwrap();
        let (process, server) = serve(folder.path(), &[DONE], Some((0, "paused")));
        process.stop().unwrap();
        assert_eq!(process.next(Duration::from_secs(10)), Ok(Happened::Stopped));
        assert_eq!(server.join().unwrap(), ["PUT /api/v1/vm.pause HTTP/1.1"]);
        let ended = process.next(Duration::from_secs(10));
        assert_eq!(ended, Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn state_is_that_of_the_reply() {
        const PAUSED: &str = "HTTP/1.1 200 \r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}";
        const OTHER: &str = "HTTP/1.1 200 \r\nContent-Length: 17\r\n\r\n{\"state\":\"Other\"}";
        let folder = tempfile::tempdir().unwrap();
        let (process, server) = serve(folder.path(), &[PAUSED, OTHER], None);
        assert_eq!(process.state(), Ok(RunState::Paused));
        assert!(process.state().unwrap_err().to_string().contains("Other"));
        server.join().unwrap();
    }
}
