//! Checks the rules that a QMP server must follow on every connection: one greeting, one response
//! to each request, in order and with its id, and events with plausible timestamps.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cpr_qmp::message::{Response, ServerMessage, Timestamp};

/// How much later than its timestamp an event may arrive.
const LATE: Duration = Duration::from_secs(60);
/// How much earlier than its timestamp an event may arrive: the clock may be adjusted.
const EARLY: Duration = Duration::from_secs(1);
/// The most violations that are kept.
const KEPT: usize = 8;

/// The state of one connection.
#[derive(Debug, Default)]
pub struct Conversation {
    greeted: bool,
    /// Ids of unanswered requests, in order.
    asked: VecDeque<u64>,
    /// The timestamp of the newest event, also of earlier connections: the VMM's clock is the same.
    newest: Option<Timestamp>,
    violations: Vec<String>,
}

impl Conversation {
    /// Records that a request is about to be sent.
    pub fn ask(&mut self, id: u64) {
        self.asked.push_back(id);
    }

    /// Starts a new connection. Unanswered requests of the last one stay unanswered.
    pub fn reopen(&mut self) {
        self.greeted = false;
        self.asked.clear();
    }

    /// The violations found so far.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// Parses a line that arrived `now`, including its line end; the error says why it is invalid.
    pub fn line(&mut self, line: &[u8], now: SystemTime) -> Result<ServerMessage, String> {
        let shown = || String::from_utf8_lossy(line).into_owned();
        let message = serde_json::from_slice(line).map_err(|e| {
            let why = format!("the VMM sent an invalid QMP message ({e}): {:?}", shown());
            self.complain(why.clone());
            why
        })?;
        // QEMU ends its lines this way; a CR anywhere else in JSON is escaped.
        if !line.ends_with(b"\r\n") {
            self.complain(format!("a line must end with CR and LF: {:?}", shown()));
        }
        match &message {
            ServerMessage::Greeting(_) if self.greeted => {
                self.complain(format!("a second greeting: {}", shown().trim_end()));
            }
            ServerMessage::Greeting(_) => self.greeted = true,
            _ if !self.greeted => {
                self.complain(format!("before the greeting came {}", shown().trim_end()));
            }
            ServerMessage::Event(event) => self.stamped(event.timestamp, now, &event.event),
            ServerMessage::Response(response) => self.answered(response, &shown()),
        }
        Ok(message)
    }

    fn answered(&mut self, response: &Response, shown: &str) {
        let (Response::Success { id, .. } | Response::Failure { id, .. }) = response;
        let shown = shown.trim_end();
        let Some(id) = id else { return self.complain(format!("an answer without id: {shown}")) };
        let known = id.as_u64().and_then(|id| self.asked.iter().position(|asked| *asked == id));
        match known {
            None => self.complain(format!("a response to an unknown or answered request: {shown}")),
            Some(at) => {
                if at > 0 {
                    let first = self.asked[0];
                    self.complain(format!("request {id} was answered before request {first}"));
                }
                self.asked.remove(at);
            }
        }
    }

    fn stamped(&mut self, stamp: Timestamp, now: SystemTime, name: &str) {
        let Timestamp { seconds, microseconds } = stamp;
        let timestamp = format!("the timestamp {seconds} s {microseconds} us of {name}");
        let (Ok(whole), Ok(micros @ ..1_000_000)) =
            (u64::try_from(seconds), u64::try_from(microseconds))
        else {
            return self.complain(format!("{timestamp} is invalid"));
        };
        let then = Duration::from_secs(whole) + Duration::from_micros(micros);
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        if now.saturating_sub(then) > LATE || then.saturating_sub(now) > EARLY {
            self.complain(format!("{timestamp} is far from its arrival time, {now:?}"));
        }
        if let Some(newest) = self.newest.filter(|newest| *newest > stamp) {
            self.complain(format!("{timestamp} is before that of an earlier event, {newest:?}"));
        }
        self.newest = self.newest.max(Some(stamp));
    }

    fn complain(&mut self, why: String) {
        if self.violations.len() < KEPT {
            self.violations.push(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"major": 1, "minor": 0, "micro": 0}, "package": ""}, "capabilities": []}}"#;

    macro_rules! event {
        ($seconds:literal, $micros:literal) => {
            concat!(
                r#"{"event": "E", "timestamp": {"seconds": "#,
                $seconds,
                r#", "microseconds": "#,
                $micros,
                "}}"
            )
        };
    }

    /// The violations in these lines, which answer the requests 1 to 3 and arrive in second 1000.
    fn violations(lines: &[String]) -> String {
        let mut conversation = Conversation::default();
        (1..=3).for_each(|id| conversation.ask(id));
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        for line in lines {
            let _ = conversation.line(line.as_bytes(), now);
        }
        conversation.violations().join("\n")
    }

    fn ended(lines: &[&str]) -> Vec<String> {
        std::iter::once(&GREETING).chain(lines).map(|line| format!("{line}\r\n")).collect()
    }

    #[test]
    fn accepts_a_valid_conversation() {
        let (one, two) = (event!(999, 999999), event!(1000, 0));
        let lines = [
            r#"{"return": {}, "id": 1}"#,
            one,
            r#"{"error": {"class": "GenericError", "desc": "no"}, "id": 2}"#,
            two,
            two,
        ];
        assert_eq!(violations(&ended(&lines)), "");
    }

    #[rstest]
    #[case::second_greeting(&[GREETING], "a second greeting")]
    #[case::twice(&[r#"{"return": {}, "id": 1}"#, r#"{"return": {}, "id": 1}"#], "unknown or answered request")]
    #[case::of_nothing(&[r#"{"return": {}, "id": 9}"#], "unknown or answered request")]
    #[case::id_of_another_kind(&[r#"{"return": {}, "id": "1"}"#], "unknown or answered request")]
    #[case::order(&[r#"{"return": {}, "id": 2}"#], "request 2 was answered before request 1")]
    #[case::without_id(&[r#"{"error": {"class": "GenericError", "desc": "no"}}"#], "an answer without id")]
    #[case::class(&[r#"{"error": {"class": "Odd", "desc": "no"}, "id": 1}"#], "an invalid QMP message")]
    #[case::no_json(&["{"], "an invalid QMP message")]
    #[case::micros(&[event!(1000, 1000000)], "is invalid")]
    #[case::unknown(&[event!(-1, -1)], "is invalid")]
    #[case::future(&[event!(1002, 0)], "far from its arrival time")]
    #[case::past(&[event!(939, 0)], "far from its arrival time")]
    #[case::back(&[event!(1000, 5), event!(1000, 4)], "before that of an earlier event")]
    fn reports_each_violation(#[case] lines: &[&str], #[case] why: &str) {
        let violation = violations(&ended(lines));
        assert!(violation.contains(why) && violation.lines().count() == 1, "{violation}");
    }

    #[test]
    fn checks_line_ends_and_the_order_of_the_greeting() {
        assert!(
            violations(&[format!("{GREETING}\n")]).starts_with("a line must end with CR and LF")
        );
        assert!(
            violations(&[format!("{}\r\n", event!(1000, 0))]).starts_with("before the greeting")
        );
    }

    #[test]
    fn a_new_connection_greets_again_and_drops_old_requests() {
        let mut conversation = Conversation::default();
        let mut line = |text: &str, reopens: bool| {
            if reopens {
                conversation.reopen();
            }
            conversation.ask(7);
            let _ = conversation.line(format!("{text}\r\n").as_bytes(), SystemTime::now());
            conversation.violations().len()
        };
        assert_eq!(line(GREETING, false), 0);
        assert_eq!(line(GREETING, true), 0);
        assert_eq!(line(r#"{"return": {}, "id": 7}"#, false), 0);
    }
}
