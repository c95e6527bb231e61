//! Runs many cases, a few at a time, and tells what happens as it happens.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::case::{self, Stepped};
use super::rounds::Rounds;
use super::{Options, Report};
use crate::process::signals::Ending;

/// How often a watcher is called while nothing happens.
const TICK: Duration = Duration::from_millis(500);

/// What happens in a run.
pub enum Event {
    /// The case with this name begins.
    Began(String),
    /// A step of the case with this name ended.
    Stepped(String, Stepped),
    /// A case ended.
    Done(Box<Report>),
    /// This signal asks for the end of the run.
    Interrupted(Signal),
    /// Nothing, for `TICK`.
    Idle,
}

/// What is sent to the watcher.
enum Message {
    Event(Event),
    /// A report, and where the worker waits for the judgement on it.
    Done(Box<Report>, Sender<ControlFlow<()>>),
    /// A worker ended.
    Left,
}

/// Where the events of a run arrive, also those that come before it begins.
pub struct Events {
    sender: Sender<Message>,
    receiver: Receiver<Message>,
    /// Whether a run receives the events. Locked while a signal is sent, so that the run ends before
    /// or after that.
    running: Arc<Mutex<bool>>,
}

impl Events {
    /// Creates an empty queue. During its run, that decides what a signal does.
    #[allow(clippy::new_without_default, reason = "it is a channel, not a value")]
    pub fn new() -> Self {
        let (sender, receiver) = mpsc::channel();
        Self { sender, receiver, running: Arc::default() }
    }

    /// Returns an ending that asks the run to end itself. Before and after the run, a signal ends the
    /// process at once, but a closed standard output leaves time for the reports.
    pub fn ending(&self) -> Ending {
        let (sender, running) = (self.sender.clone(), self.running.clone());
        let ask = move |signal| {
            let running = running.lock().unwrap_or_else(PoisonError::into_inner);
            let asks = *running || signal == Signal::SIGPIPE;
            asks && sender.send(Message::Event(Event::Interrupted(signal))).is_ok()
        };
        Ending::Asked(Box::new(ask))
    }

    fn set_running(&self, running: bool) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = running;
    }

    /// Runs `rounds`, `jobs` cases at a time, and calls `on` with each event. After it breaks no
    /// further case begins. A worker begins its next case when `on` has judged its last one.
    pub fn run(
        &self,
        rounds: Rounds<'_>,
        jobs: usize,
        options: &Options,
        on: impl FnMut(Event) -> ControlFlow<()>,
    ) {
        let run = |number: usize, worker: &Worker<'_>| {
            let case = rounds.nth(number)?;
            worker.tell(Event::Began(case.name.clone()));
            let stepped = |step| worker.tell(Event::Stepped(case.name.clone(), step));
            Some(case::run_watched(&case, options, &stepped))
        };
        self.work(jobs.clamp(1, rounds.total().max(1)), run, on);
    }

    fn work(
        &self,
        workers: usize,
        run: impl Fn(usize, &Worker<'_>) -> Option<Report> + Sync,
        mut on: impl FnMut(Event) -> ControlFlow<()>,
    ) {
        let next = AtomicUsize::new(0);
        self.set_running(true);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                let (sender, next, run) = (self.sender.clone(), &next, &run);
                scope.spawn(move || {
                    let worker = Worker { sender: &sender };
                    while let Some(report) = run(next.fetch_add(1, Ordering::Relaxed), &worker) {
                        let (judge, judged) = mpsc::channel();
                        let sent = sender.send(Message::Done(Box::new(report), judge));
                        if sent.is_err() || judged.recv() != Ok(ControlFlow::Continue(())) {
                            return;
                        }
                    }
                });
            }
            let (mut left, mut verdict) = (0, ControlFlow::Continue(()));
            while left < workers {
                let (event, judge) = match self.receiver.recv_timeout(TICK) {
                    Ok(Message::Left) => {
                        left += 1;
                        continue;
                    }
                    Ok(Message::Event(event)) => (event, None),
                    Ok(Message::Done(report, judge)) => (Event::Done(report), Some(judge)),
                    Err(RecvTimeoutError::Timeout) => (Event::Idle, None),
                    // Impossible: a sender is part of this.
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                if on(event).is_break() {
                    verdict = ControlFlow::Break(());
                }
                // The worker waits for this, so it is there.
                judge.map(|judge| judge.send(verdict));
            }
        });
        self.set_running(false);
        // A signal that was accepted after the last worker left.
        for message in self.receiver.try_iter() {
            if let Message::Event(event @ Event::Interrupted(_)) = message {
                let _ = on(event);
            }
        }
    }
}

/// A thread that runs cases.
struct Worker<'a> {
    sender: &'a Sender<Message>,
}

impl Worker<'_> {
    fn tell(&self, event: Event) {
        // The watcher outlives the workers, so sending cannot fail.
        let _ = self.sender.send(Message::Event(event));
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        let _ = self.sender.send(Message::Left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs up to four reports with `workers` workers; breaks after the one with number `last`.
    fn names(workers: usize, last: usize) -> Vec<String> {
        let mut seen = Vec::new();
        let of = |n: usize| Report::of(&n.to_string(), String::new(), String::new());
        let run = |n: usize, _: &Worker<'_>| (n < 4).then(|| of(n));
        Events::new().work(workers, run, |event| {
            if let Event::Done(report) = event {
                seen.push(report.case.clone());
            }
            match seen.len() > last {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        seen.sort();
        seen
    }

    #[test]
    fn nothing_begins_after_a_break() {
        assert_eq!(names(1, 1), ["0", "1"]);
    }

    #[test]
    fn every_case_is_done_once() {
        assert_eq!(names(3, 9), ["0", "1", "2", "3"]);
    }

    /// Runs nothing, but calls `during`; returns the signals that the run was asked for.
    fn signals(events: &Events, during: impl Fn() + Sync) -> Vec<Signal> {
        let mut signals = Vec::new();
        let run = |_: usize, _: &Worker<'_>| {
            during();
            None
        };
        events.work(1, run, |event| {
            if let Event::Interrupted(signal) = event {
                signals.push(signal);
            }
            ControlFlow::Continue(())
        });
        signals
    }

    #[test]
    fn run_is_asked_to_end_only_while_it_runs() {
        let events = Events::new();
        let Ending::Asked(ask) = events.ending() else { panic!("another ending") };
        assert!(!ask(Signal::SIGTERM));
        let ask = Mutex::new(ask);
        let during = || assert!(ask.lock().unwrap()(Signal::SIGINT));
        assert_eq!(signals(&events, during), [Signal::SIGINT]);
        assert!(!ask.lock().unwrap()(Signal::SIGTERM));
        assert_eq!(signals(&events, || ()), []);
    }

    #[test]
    fn closed_stdout_before_the_run_ends_it_and_later_does_not() {
        let events = Events::new();
        let Ending::Asked(ask) = events.ending() else { panic!("another ending") };
        assert!(ask(Signal::SIGPIPE));
        assert_eq!(signals(&events, || ()), [Signal::SIGPIPE]);
        // The reports are being written.
        assert!(ask(Signal::SIGPIPE));
    }
}
