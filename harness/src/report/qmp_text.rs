//! Shortens QMP messages for readers: the name first, and replies with the command they belong to.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::run::evidence::timeline::Entry;

/// Shortens messages, and tracks the pending commands that replies belong to.
#[derive(Default)]
pub struct Shortener {
    /// Pending commands, by client and ID.
    asked: BTreeMap<(String, String), String>,
}

impl Shortener {
    /// Returns the text of an entry as one line that is safe to print on a terminal.
    pub fn short(&mut self, entry: &Entry) -> String {
        let text = match entry.source.rsplit_once('-') {
            Some((client, "sent")) => self.sent(client, &entry.text),
            Some((client, "received")) => self.received(client, &entry.text),
            _ if entry.source == "vmm" => Some(without_stamp(&entry.text).to_owned()),
            _ => None,
        };
        printable(text.as_deref().unwrap_or(&entry.text))
    }

    fn sent(&mut self, client: &str, text: &str) -> Option<String> {
        let message: Value = serde_json::from_str(text).ok()?;
        let command = message.get("execute").or_else(|| message.get("exec-oob"))?.as_str()?;
        if let Some(id) = message.get("id") {
            self.asked.insert((client.to_owned(), id.to_string()), command.to_owned());
        }
        Some(format!("{command}{}", fields(message.get("arguments"))))
    }

    fn received(&mut self, client: &str, text: &str) -> Option<String> {
        let message: Value = serde_json::from_str(text).ok()?;
        if let Some(event) = message.get("event").and_then(Value::as_str) {
            return Some(format!("{event}{}", fields(message.get("data"))));
        }
        if let Some(version) = message.pointer("/QMP/version") {
            return Some(format!("greeting{}", fields(Some(version))));
        }
        let id = message.get("id").map(Value::to_string).unwrap_or_default();
        let command = self.asked.remove(&(client.to_owned(), id));
        let command = command.unwrap_or_else(|| "unknown command".to_owned());
        if let Some(error) = message.get("error") {
            let field = |name| error.get(name).and_then(Value::as_str).unwrap_or_default();
            return Some(format!("{command} failed: {}: {}", field("class"), field("desc")));
        }
        match message.get("return")? {
            Value::Object(fields) if fields.is_empty() => Some(format!("{command} done")),
            Value::Object(_) => {
                Some(format!("{command} returned{}", fields(message.get("return"))))
            }
            other => Some(format!("{command} returned {other}")),
        }
    }
}

/// Formats fields as ` key=value …`, quoted only where necessary.
fn fields(value: Option<&Value>) -> String {
    let Some(Value::Object(fields)) = value else { return String::new() };
    let field = |(key, value): (&String, &Value)| match value {
        Value::String(text) if !text.is_empty() && !text.contains([' ', '"', '=']) => {
            format!(" {key}={text}")
        }
        value => format!(" {key}={value}"),
    };
    fields.iter().map(field).collect()
}

/// Strips the time stamp of a line of the VMM's log: the time has a column of its own.
fn without_stamp(line: &str) -> &str {
    let stamped = |word: &str| word.len() >= 20 && word.ends_with('Z') && word.contains('T');
    match line.split_once(' ') {
        Some((word, rest)) if stamped(word) => rest.trim_start(),
        _ => line,
    }
}

/// Escapes control characters, which would affect the terminal: guest output is arbitrary.
pub fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\t' => " ".to_owned(),
        c if c.is_control() => c.escape_debug().to_string(),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_first() {
        let mut shortener = Shortener::default();
        let entries = [
            ("qmp-received", r#"{"QMP": {"version": {"package": "cpr-vmm"}, "capabilities": []}}"#),
            ("qmp-sent", r#"{"execute":"migrate","id":3,"arguments":{"uri":"file:/state 1"}}"#),
            ("qmp-2-sent", r#"{"execute":"query-status","id":3}"#),
            ("qmp-received", r#"{"event":"MIGRATION","data":{"status":"setup"},"timestamp":{}}"#),
            ("qmp-received", r#"{"return": {}, "id": 3}"#),
            ("qmp-2-received", r#"{"return": {"running": true, "status": "running"}, "id": 3}"#),
            ("qmp-sent", r#"{"execute":"cont","id":4}"#),
            ("qmp-received", r#"{"error": {"class": "GenericError", "desc": "no"}, "id": 4}"#),
            ("qmp-received", r#"{"return": ["a"], "id": 9}"#),
            ("qmp-received", r#"{"retu"#),
            ("vmm", "2026-11-27T02:15:31.650450Z DEBUG cpr_vmm: machine_step"),
            ("serial", "clear\u{1b}[2J\tscreen\u{7}"),
        ];
        let text: Vec<String> = entries
            .map(|(source, text)| Entry { t: 0.0, source: source.into(), text: text.into() })
            .iter()
            .map(|entry| format!("{:<14} {}", entry.source, shortener.short(entry)))
            .collect();
        insta::assert_snapshot!(text.join("\n"), @r#"
        qmp-received   greeting package=cpr-vmm
        qmp-sent       migrate uri="file:/state 1"
        qmp-2-sent     query-status
        qmp-received   MIGRATION status=setup
        qmp-received   migrate done
        qmp-2-received query-status returned running=true status=running
        qmp-sent       cont
        qmp-received   cont failed: GenericError: no
        qmp-received   unknown command returned ["a"]
        qmp-received   {"retu
        vmm            DEBUG cpr_vmm: machine_step
        serial         clear\u{1b}[2J screen\u{7}
        "#);
    }
}
