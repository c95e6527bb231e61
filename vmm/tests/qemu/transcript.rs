//! Takes both VMMs through the same steps, and compares the outcomes.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Instant;

use cpr_qmp::schema::{COMMANDS, Type};
use serde_json::{Value, json};

use crate::differences::{self, Aspect};
use crate::peer::Peer;
use crate::steps::{Act, Step};
use crate::support::{PATIENCE, Scene};
use crate::wire::Wire;

/// The outcome of one step.
#[derive(Debug, Default)]
struct Outcome {
    /// For each answer, the returned value or the class of the error, and the `id`.
    reply: String,
    /// The texts of the errors.
    desc: String,
    /// The events, and the position of the answers among them.
    order: String,
}

impl Outcome {
    fn aspects(&self) -> [(Aspect, &str); 3] {
        [(Aspect::Reply, &self.reply), (Aspect::Desc, &self.desc), (Aspect::Order, &self.order)]
    }
}

/// Runs the steps on both; the differences must be exactly the listed ones.
pub fn compare(transcript: &str, steps: &[Step]) {
    let scenes = (Scene::new(), Scene::new());
    let theirs = take(&Peer::qemu(&scenes.0), steps);
    let ours = take(&Peer::ours(&scenes.1), steps);

    let (mut table, mut unlisted, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    for ((step, theirs), ours) in steps.iter().zip(&theirs).zip(&ours) {
        for ((aspect, theirs), (_, ours)) in theirs.aspects().into_iter().zip(ours.aspects()) {
            let row = |theirs: &str, reason: &str| {
                let Step { name, .. } = step;
                format!("{name}: {aspect}\n    QEMU  {theirs}\n    ours  {ours}\n    {reason}")
            };
            match differences::listed(transcript, step.name, aspect) {
                Some(listed) if listed.varies => table.push(row("(varies)", listed.reason)),
                Some(listed) if theirs != ours => table.push(row(theirs, listed.reason)),
                Some(listed) => gone.push(listed),
                None if theirs != ours => unlisted.push(row(theirs, "not listed")),
                None => {}
            }
        }
    }
    assert!(unlisted.is_empty(), "{}", unlisted.join("\n"));
    assert!(gone.is_empty(), "listed differences that do not occur: {gone:#?}");
    // No snapshot without differences.
    if table.is_empty() {
        return;
    }
    insta::with_settings!({ prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!(format!("differences_{transcript}"), table.join("\n"));
    });
}

fn take(peer: &Peer, steps: &[Step]) -> Vec<Outcome> {
    let (mut wire, mut outcomes) = (peer.connect(), Vec::new());
    for step in steps {
        if matches!(step.act, Act::Connect) {
            drop(wire);
            wire = peer.connect();
        }
        wire.doing = step.name;
        outcomes.push(outcome(peer, step, &act(peer, &mut wire, &step.act)));
    }
    outcomes
}

/// Performs one step, and returns the server's messages.
fn act(peer: &Peer, wire: &mut Wire, act: &Act) -> Vec<Value> {
    match act {
        // The old connection was dropped: QEMU serves one client at a time.
        Act::Connect => vec![wire.greeting.clone()],
        Act::Resume => {
            wire.say(br#"{"execute": "qmp_capabilities"}"#);
            // QEMU may serve clients before it has loaded the state; whether its RESUME is seen
            // depends on timing.
            let deadline = Instant::now() + PATIENCE;
            loop {
                let answer = wire.fence("query-status").1;
                if answer["return"]["status"] != "inmigrate" {
                    return vec![json!({ "return": answer["return"] })];
                }
                assert!(Instant::now() < deadline, "{answer}");
            }
        }
        Act::Say(text) => {
            wire.say(peer.fill_in(text).as_bytes());
            wire.fence("query-version").0
        }
        Act::Bytes(bytes) => {
            wire.say(bytes);
            wire.fence("query-version").0
        }
        Act::Migrate { text, ends } => {
            wire.say(peer.fill_in(text).as_bytes());
            settle(wire, |status| if peer.hangs_up() { status == *ends } else { is_over(status) })
        }
        Act::Update(text) => {
            wire.say(peer.fill_in(text).as_bytes());
            if !peer.hangs_up() {
                return settle(wire, is_over);
            }
            let mut messages = Vec::new();
            while let Some(message) = wire.next().expect("QEMU hangs up") {
                messages.push(message);
            }
            messages.push("end of stream".into());
            messages
        }
    }
}

fn is_over(status: &str) -> bool {
    ["completed", "failed", "cancelled", "none"].contains(&status)
}

/// Returns all messages until the migration is over, or was refused.
fn settle(wire: &mut Wire, is_over: impl Fn(&str) -> bool) -> Vec<Value> {
    let deadline = Instant::now() + PATIENCE;
    let mut messages = Vec::new();
    loop {
        let (before, answer) = wire.fence("query-migrate");
        messages.extend(before);
        let refused = messages.iter().any(|message| message.get("error").is_some())
            && !messages.iter().any(|message| message.get("return").is_some());
        let status = answer["return"]["status"].as_str().unwrap_or("none");
        if refused || is_over(status) {
            return messages;
        }
        assert!(Instant::now() < deadline, "{answer} after {messages:?}");
    }
}

fn outcome(peer: &Peer, step: &Step, messages: &[Value]) -> Outcome {
    // QEMU begins before it answers, and continues in another thread.
    let begins = matches!(step.act, Act::Migrate { .. } | Act::Update(_));
    let (mut replies, mut descs, mut order) = (Vec::new(), Vec::new(), Vec::new());
    for message in messages {
        if let Some(event) = message["event"].as_str() {
            let data = message.get("data").map(|data| shape("data", data));
            order.push(format!("{event}{}", data.unwrap_or_default()));
            continue;
        }
        let id = message.get("id").map(|id| format!(" id {id}")).unwrap_or_default();
        if let Some(value) = message.get("return") {
            replies.push(format!("return {}{id}", shape("", &shared(value))));
        } else if let Some(error) = message.get("error") {
            replies.push(format!("{}{id}", error["class"].as_str().unwrap_or("no class")));
            descs.push(desc(&peer.redact(error["desc"].as_str().unwrap_or("no desc"))));
        } else {
            replies.push(shape("", message));
        }
        if !begins {
            order.push("reply".to_owned());
        }
    }
    Outcome { reply: replies.join("; "), desc: descs.join("; "), order: order.join(", ") }
}

/// Returns the text of an error, without the details of a JSON parser.
fn desc(text: &str) -> String {
    let parsing = "JSON parse error";
    if text.contains(parsing) { parsing.to_owned() } else { text.to_owned() }
}

/// Members that are compared by value, not only by type.
const TOLD: &[&str] =
    &["status", "running", "state", "mode", "reason", "guest", "cpr-exec-command"];

/// Describes the structure of `value`; a list is described by its first element.
fn shape(name: &str, value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut members: Vec<_> =
                map.iter().map(|(name, value)| format!("{name}: {}", shape(name, value))).collect();
            members.sort();
            format!("{{{}}}", members.join(", "))
        }
        _ if TOLD.contains(&name) => value.to_string(),
        Value::Array(items) => {
            format!("[{}]", items.first().map_or(String::new(), |i| shape("", i)))
        }
        Value::String(text) if text == "end of stream" => text.clone(),
        Value::String(_) => "string".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::Bool(_) => "boolean".to_owned(),
        Value::Null => "null".to_owned(),
    }
}

/// Returns `value` without the members that only one of the two has. The schema test checks that
/// ours has all mandatory members.
fn shared(value: &Value) -> Value {
    static OURS: LazyLock<BTreeSet<&str>> = LazyLock::new(|| {
        let mut names = BTreeSet::new();
        COMMANDS.iter().for_each(|command| member_names(&command.returns, &mut names));
        names
    });
    let is_shared = |name: &str| OURS.contains(name) && !name.starts_with("x-");
    match value {
        Value::Object(map) => {
            let members = map.iter().filter(|(name, _)| is_shared(name));
            members.map(|(name, value)| (name.clone(), shared(value))).collect()
        }
        Value::Array(items) => items.iter().map(shared).collect(),
        _ => value.clone(),
    }
}

fn member_names(of: &'static Type, names: &mut BTreeSet<&'static str>) {
    match of {
        Type::Array(element) => member_names(element, names),
        Type::Object(object) => {
            for member in object.members {
                if names.insert(member.name) {
                    member_names(&member.of, names);
                }
            }
        }
        _ => {}
    }
}
