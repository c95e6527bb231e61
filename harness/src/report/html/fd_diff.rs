//! The descriptor table before and after, as what has changed.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::super::folder::Folder;
use super::parts::scrolling;

/// What a line says of a descriptor, without size and offset, which change as it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    target: String,
    inode: String,
    flags: String,
}

/// A descriptor that is not as it was.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    number: i32,
    was: Option<Line>,
    is: Option<Line>,
}

/// The difference between what was seen last and what was seen before the failure, or after boot.
pub fn diff(folder: &Folder) -> Markup {
    let before = ["proc-before.txt", "proc-boot.txt"];
    let before = before.into_iter().find_map(|name| Some((name, folder.text(name)?)));
    let (Some((name, before)), Some(after)) = (before, folder.text("proc-after.txt")) else {
        return html! {};
    };
    let (before, after) = (table(&before), table(&after));
    let changes = changes(&before, &after);
    let kept = before.len() - changes.iter().filter(|change| change.was.is_some()).count();
    let since = if name == "proc-before.txt" { "before the step" } else { "after boot" };
    html! {
        h4 { "Descriptors" }
        @if changes.is_empty() {
            p { "All " (kept) " are what they were " (since) "." }
        } @else {
            p { (kept) " are what they were " (since) ", and not:" }
            (scrolling("descriptors that changed", html! {
                table.diff {
                    thead { tr {
                        th.number scope="col" { "fd" } th scope="col" { "change" }
                        th scope="col" { "what" } th scope="col" { "inode" } th scope="col" { "flags" }
                    } }
                    tbody {
                        @for change in &changes {
                            @if let Some(was) = &change.was { (row(change, was, true)) }
                            @if let Some(is) = &change.is { (row(change, is, false)) }
                        }
                    }
                }
            }))
        }
    }
}

fn row(change: &Change, line: &Line, old: bool) -> Markup {
    let word = match (&change.was, &change.is) {
        (None, _) => "+ new",
        (_, None) => "− gone",
        _ if old => "− was",
        _ => "+ is",
    };
    html! {
        tr class=(if old { "removed" } else { "added" }) {
            td.number { (change.number) }
            td.nowrap { (word) } td { (line.target) } td { (line.inode) } td { (line.flags) }
        }
    }
}

fn changes(before: &BTreeMap<i32, Line>, after: &BTreeMap<i32, Line>) -> Vec<Change> {
    let mut numbers: Vec<&i32> = before.keys().chain(after.keys()).collect();
    numbers.sort();
    numbers.dedup();
    let change = |number: &i32| {
        let (was, is) = (before.get(number), after.get(number));
        let change = || Change { number: *number, was: was.cloned(), is: is.cloned() };
        (was != is).then(change)
    };
    numbers.into_iter().filter_map(change).collect()
}

/// The table in an observation; what cannot be read in it is left out.
fn table(text: &str) -> BTreeMap<i32, Line> {
    let lines = text.lines().skip_while(|line| *line != "descriptors").skip(1);
    lines.take_while(|line| !line.is_empty()).filter_map(line).collect()
}

fn line(text: &str) -> Option<(i32, Line)> {
    let (number, rest) = text.trim_start().split_once(' ')?;
    // A target may be called anything.
    let (target, rest) = rest.rsplit_once(" inode ")?;
    let (inode, rest) = rest.split_once(" size ")?;
    let (_, flags) = rest.split_once(" flags ")?;
    let (flags, _) = flags.rsplit_once(" offset ")?;
    let target = target.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    let target = target.strip_suffix(" -").unwrap_or(&target).to_owned();
    Some((number.parse().ok()?, Line { target, inode: inode.into(), flags: flags.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::fds::{Descriptor, FdTable};

    fn text(descriptors: &[Descriptor]) -> String {
        let table = FdTable(descriptors.iter().map(|d| (d.number, d.clone())).collect());
        format!("status\n\ndescriptors\n{table}\nRAM\n")
    }

    #[test]
    fn only_what_changed_is_told() {
        let file = Descriptor {
            number: 3,
            target: "/tmp/a b inode 7".into(),
            inode: (1, 2),
            size: 3,
            flags: 0o100002,
            close_on_exec: true,
            offset: 4,
            socket_path: None,
        };
        let socket = Descriptor {
            number: 5,
            target: "socket:[9]".into(),
            socket_path: Some("/run/qmp.sock".into()),
            ..file.clone()
        };
        let grown = Descriptor { size: 9, offset: 9, ..file.clone() };
        let leaky = Descriptor { close_on_exec: false, ..socket.clone() };
        let new = Descriptor { number: 7, ..file.clone() };
        let before = table(&text(&[file, socket]));
        let after = table(&text(&[grown, leaky, new]));
        let line = |target: &str, flags: &str| {
            Some(Line { target: target.into(), inode: "1:2".into(), flags: flags.into() })
        };
        let socket = "socket:[9] /run/qmp.sock";
        assert_eq!(
            changes(&before, &after),
            [
                Change {
                    number: 5,
                    was: line(socket, "100002 cloexec"),
                    is: line(socket, "100002")
                },
                Change { number: 7, was: None, is: line("/tmp/a b inode 7", "100002 cloexec") },
            ]
        );
    }
}
