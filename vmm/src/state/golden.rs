//! The saved states of each released format, in `scenarios/golden/`, and how they are compared.

use std::fs;
use std::path::{Path, PathBuf};

use ciborium::Value;

use super::{KnownSection, STATE_VERSION, known_versions};

/// Environment variable that makes the tests write the golden states of a new format.
const WRITE: &str = "CPR_WRITE_GOLDEN";
/// The command that adds golden states.
pub const COMMAND: &str = "CPR_WRITE_GOLDEN=1 cargo test -p cpr-vmm golden";

/// Whether missing golden states are to be written.
pub fn writes() -> bool {
    std::env::var_os(WRITE).is_some()
}

/// The folder of the golden states.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../scenarios/golden")
}

/// Returns the folders whose names begin with `prefix`: one per format.
pub fn formats(prefix: &str) -> Vec<PathBuf> {
    let is_one = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        path.is_dir() && name.is_some_and(|name| name.starts_with(prefix))
    };
    entries(folder()).into_iter().filter(is_one).collect()
}

/// The folder of the format that this binary writes.
pub fn own(known: &[KnownSection]) -> String {
    let sections: Vec<_> =
        known.iter().map(|known| format!("-{}{}", known.name, known.newest)).collect();
    format!("state{STATE_VERSION}{}", sections.concat())
}

/// Whether this binary reads the states in `folder`, whose name has the versions.
pub fn is_readable(folder: &Path, known: &[KnownSection]) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    // A name may contain a hyphen itself; a version ends each part.
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    let ends = ends.filter(|at| name[..*at].ends_with(|c: char| c.is_ascii_digit()));
    let mut start = 0;
    let found: Vec<_> = ends
        .map(|end| {
            let part = &name[std::mem::replace(&mut start, end + 1)..end];
            let digits = part.trim_start_matches(|c: char| !c.is_ascii_digit());
            (part.strip_suffix(digits).unwrap_or_default(), digits.parse::<u32>().ok())
        })
        .collect();
    let reads = |(name, version): &(&str, Option<u32>)| {
        version.is_some_and(|version| match *name {
            "state" => known_versions().contains(&version),
            name => {
                known.iter().any(|known| known.name == name && known.versions().contains(&version))
            }
        })
    };
    let has =
        |known: &KnownSection| known.optional || found.iter().any(|(name, _)| *name == known.name);
    found.iter().all(reads) && known.iter().all(has)
}

/// Returns the entries of a folder, sorted.
pub fn entries(folder: PathBuf) -> Vec<PathBuf> {
    let path = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().path();
    let mut all: Vec<PathBuf> =
        fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder:?}: {e}")).map(path).collect();
    all.sort();
    all
}

/// Returns the structure of some CBOR, one line for each place in it: path and type.
pub fn structure(cbor: &[u8]) -> Vec<String> {
    let value: Value = ciborium::from_reader(cbor).unwrap();
    let mut lines = Vec::new();
    walk(&value, String::new(), &mut lines);
    lines
}

fn walk(value: &Value, path: String, lines: &mut Vec<String>) {
    let kind = match value {
        Value::Map(entries) => {
            for (key, value) in entries {
                let key = key.as_text().map_or_else(|| format!("{key:?}"), str::to_owned);
                walk(value, format!("{path}.{key}"), lines);
            }
            return;
        }
        Value::Array(elements) => {
            for element in elements {
                walk(element, format!("{path}[]"), lines);
            }
            return;
        }
        Value::Integer(_) => "integer".to_owned(),
        Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
        Value::Text(_) => "text".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Float(_) => "float".to_owned(),
        Value::Null => "null".to_owned(),
        other => format!("{other:?}"),
    };
    let line = format!("{path}: {kind}");
    if !lines.contains(&line) {
        lines.push(line);
    }
}

/// Returns how `now` differs from `golden`: in structure, or else in values; `None` if it does not.
pub fn changes(golden: &[u8], now: &[u8]) -> Option<String> {
    if golden == now {
        return None;
    }
    let (was, is) = (structure(golden), structure(now));
    let gone = was.iter().filter(|line| !is.contains(line)).map(|line| format!("- {line}"));
    let new = is.iter().filter(|line| !was.contains(line)).map(|line| format!("+ {line}"));
    let lines: Vec<String> = gone.chain(new).collect();
    match lines.is_empty() {
        true => Some("different values or a different order".to_owned()),
        false => Some(lines.join("\n")),
    }
}

#[test]
fn changes_of_golden_states_are_listed() {
    let encode = |value: &Value| {
        let mut bytes = Vec::new();
        ciborium::into_writer(value, &mut bytes).unwrap();
        bytes
    };
    let map = |entries: &[(&str, Value)]| {
        Value::Map(entries.iter().map(|(k, v)| (Value::from(*k), v.clone())).collect())
    };
    let list = Value::Array(vec![map(&[("x", 1.into())]), map(&[("x", true.into())])]);
    let old = encode(&map(&[("a", 1.into()), ("list", list.clone())]));
    assert_eq!(structure(&old), [".a: integer", ".list[].x: integer", ".list[].x: bool"]);
    assert_eq!(changes(&old, &old), None);
    let new = encode(&map(&[("b", 1.into()), ("list", list)]));
    assert_eq!(changes(&old, &new).unwrap(), "- .a: integer\n+ .b: integer");
    let other = encode(&map(&[("a", 2.into()), ("list", Value::Array(Vec::new()))]));
    assert!(changes(&old, &other).unwrap().starts_with("- .list[].x: integer"));
}

#[test]
fn folder_is_readable_if_all_its_versions_are_known() {
    let only = |name, newest| KnownSection { name, oldest: newest, newest, optional: false };
    let known = [only("vcpu", 12), KnownSection { optional: true, ..only("virtio-rng", 3) }];
    let readable = |name: &str| is_readable(Path::new(name), &known);
    assert!(readable("state2-vcpu12-virtio-rng3") && readable("state2-vcpu12"));
    for other in
        ["state2-vcpu1", "state2-vcpu12-virtio-rng30", "state2-virtio-rng3", "state99-vcpu12"]
    {
        assert!(!readable(other), "{other}");
    }
}
