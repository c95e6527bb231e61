//! One process of the VMM, controlled by requests on its socket.

use std::path::PathBuf;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use cpr_harness::backend::Channels;
use cpr_harness::backend::control::{Control, ControlError, Happened, Move};
use cpr_harness::observe::qmp::{Command, Qmp, QmpFault, label};
use cpr_qmp::run_state::{RunState, StatusInfo};
use serde_json::{Value, json};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long to wait before looking again.
const PAUSE: Duration = Duration::from_millis(5);

pub struct Process {
    socket: PathBuf,
    /// Made once the process listens: this is created before it.
    requests: Mutex<Option<Qmp>>,
    reports: Mutex<Option<(Qmp, usize)>>,
}

impl Process {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, requests: Mutex::default(), reports: Mutex::default() }
    }

    fn connect(&self) -> Result<Qmp, QmpFault> {
        Qmp::connect(&self.socket, LIMIT, Arc::new(|_, _| {}), || None)
    }

    fn request(&self, command: Command) -> Result<Value, ControlError> {
        let name = command.name.clone();
        let failed = |e: QmpFault| ControlError::new(format!("send {name}"), e);
        let mut requests = lock(&self.requests);
        if requests.is_none() {
            *requests = Some(self.connect().map_err(failed)?);
        }
        requests.as_mut().expect("connected").execute(command).map_err(failed)
    }

    fn plain(&self, name: &'static str) -> Result<(), ControlError> {
        self.request(Command::plain(name)).map(drop)
    }

    /// Asks until `over` accepts the answer.
    fn ask_until(
        &self,
        query: &'static str,
        over: impl Fn(&str) -> bool,
    ) -> Result<Value, ControlError> {
        let began = Instant::now();
        loop {
            let answer = self.request(Command::plain(query))?;
            if over(answer["status"].as_str().unwrap_or_default()) {
                return Ok(answer);
            }
            if began.elapsed() > LIMIT {
                return Err(ControlError::new(
                    format!("send {query}"),
                    format!("{LIMIT:?} later it is {answer}"),
                ));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics with it")
}

impl Control for Process {
    fn ready(&self) -> Result<(), ControlError> {
        self.plain("query-status")
    }

    fn state(&self) -> Result<RunState, ControlError> {
        let answer = self.request(Command::plain("query-status"))?;
        let status: Result<StatusInfo, _> = serde_json::from_value(answer);
        status.map(|info| info.status).map_err(|e| ControlError::new("read the run state", e))
    }

    fn stop(&self) -> Result<(), ControlError> {
        self.plain("stop")
    }

    fn cont(&self) -> Result<(), ControlError> {
        self.plain("cont")
    }

    fn reset(&self) -> Result<(), ControlError> {
        self.plain("system_reset")
    }

    fn power_down(&self) -> Result<(), ControlError> {
        self.plain("system_powerdown")
    }

    fn nmi(&self) -> Result<(), ControlError> {
        self.plain("inject-nmi")
    }

    fn quit(&self) -> Result<(), ControlError> {
        self.plain("quit")
    }

    fn vcpu_threads(&self) -> Result<Vec<i32>, ControlError> {
        let cpus = self.request(Command::plain("query-cpus-fast"))?;
        let thread = |cpu: &Value| cpu["thread-id"].as_i64().map(|thread| thread as i32);
        Ok(cpus.as_array().into_iter().flatten().filter_map(thread).collect())
    }

    fn send(&self, to: &Move) -> Result<(), ControlError> {
        let mode = json!({ "mode": to.mode.name() });
        self.request(Command::new("migrate-set-parameters", mode))?;
        self.request(Command::new("migrate", to.channels.migrate()))?;
        let is_over = |status: &str| ["completed", "failed", "cancelled"].contains(&status);
        let end = self.ask_until("query-migrate", is_over)?;
        match end["status"] == "completed" {
            true => Ok(()),
            false => Err(ControlError::new("move the VM", &end["error-desc"])),
        }
    }

    fn receive(&self, _channels: &Channels) -> Result<(), ControlError> {
        self.ask_until("query-status", |status| status != "inmigrate").map(drop)
    }

    fn next(&self, limit: Duration) -> Result<Happened, RecvTimeoutError> {
        let mut reports = lock(&self.reports);
        if reports.is_none() {
            let connected = self.connect().map_err(|_| RecvTimeoutError::Disconnected)?;
            *reports = Some((connected, 0));
        }
        let (qmp, seen) = reports.as_mut().expect("connected");
        let event = match qmp.await_event(*seen, "an event", limit, |_| true) {
            Ok(arrived) => arrived.event,
            Err(QmpFault::Late { .. }) => return Err(RecvTimeoutError::Timeout),
            Err(_) => return Err(RecvTimeoutError::Disconnected),
        };
        *seen += 1;
        match &*label(&event) {
            "STOP" => Ok(Happened::Stopped),
            "RESUME" => Ok(Happened::Resumed),
            "RESET" => Ok(Happened::Reset),
            "SHUTDOWN" if event.data.is_some_and(|data| data["guest"] == true) => {
                Ok(Happened::PoweredOff)
            }
            _ => Err(RecvTimeoutError::Timeout),
        }
    }
}
