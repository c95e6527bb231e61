//! Scripts that pass the rehearsal, then damage something in the real run before they exec the VMM.

use crate::backend::ExecState;
use crate::scenario::CommandKind;

/// What a script can damage.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// The state file of this update.
    pub state: &'a str,
    /// The state file of an earlier update.
    pub earlier: Option<&'a str>,
    /// A regular file that the VMM has open and hands over.
    pub log: &'a str,
    /// What the update passes on.
    pub exec_state: ExecState,
}

/// A descriptor number that no process has open.
const NOT_OPEN: &str = "987654";

/// Returns the script for `kind`; it only execs `binary` if the kind does no damage.
pub fn script(kind: CommandKind, binary: &str, targets: Targets<'_>) -> String {
    let binary = quoted(binary);
    let exec = format!("exec {binary} \"$@\"\n");
    match lines(kind, &binary, targets) {
        None => format!("#!/bin/sh\n{exec}"),
        Some(lines) => {
            format!("#!/bin/sh\nif [ -z \"${{CPR_REHEARSAL+x}}\" ]; then\n{lines}\nfi\n{exec}")
        }
    }
}

fn lines(kind: CommandKind, binary: &str, targets: Targets<'_>) -> Option<String> {
    let (state, log) = (quoted(targets.state), quoted(targets.log));
    let earlier = quoted(targets.earlier.unwrap_or_default());
    let ExecState { variable: name, ram, .. } = targets.exec_state;
    let variable = |value: &str| format!("{name}={value}");
    // `$fd` iterates over the descriptors that the VMM left open.
    let descriptor = |condition: &str| {
        format!("for fd in /proc/$$/fd/*; do\n  {condition} && {name}=${{fd##*/}} && break\ndone")
    };
    Some(match kind {
        CommandKind::TruncatesState => {
            format!("truncate -s $(($(stat -c %s {state}) / 2)) {state}")
        }
        CommandKind::FlipsState => format!(
            "at=$(($(stat -c %s {state}) / 2))\n\
             byte=$(od -An -tu1 -j $at -N 1 {state})\n\
             printf \"\\\\$(printf %03o $((byte ^ 1)))\" |\n  \
             dd of={state} bs=1 seek=$at conv=notrunc 2>/dev/null"
        ),
        CommandKind::EmptiesState => format!(": >{state}"),
        CommandKind::ReplacesState => format!("cp {earlier} {state}"),
        CommandKind::StateBecomesFifo => format!("rm {state} && mkfifo {state}"),
        CommandKind::StateBecomesDirectory => format!("rm {state} && mkdir {state}"),
        CommandKind::RemovesState => format!("rm {state}"),
        CommandKind::EnvNotANumber => variable("seven"),
        CommandKind::EnvNegative => variable("-1"),
        CommandKind::EnvHuge => variable("99999999999999999999"),
        CommandKind::EnvClosed => variable(NOT_OPEN),
        CommandKind::EnvEmpty => variable(""),
        CommandKind::EnvRemoved => format!("unset {name}"),
        CommandKind::EnvNotMemfd => descriptor(&format!("[ $fd -ef {log} ]")),
        CommandKind::EnvOtherFd => {
            descriptor(&format!("case $(readlink $fd) in {ram}*) ;; *) false ;; esac"))
        }
        CommandKind::WithoutKvm => format!(
            "exec unshare -m /bin/sh -c \
             'mount --bind /dev/null /dev/kvm && exec \"$0\" \"$@\"' {binary} \"$@\""
        ),
        _ => return None,
    })
}

/// Quotes `word` for a shell.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Returns what the script leaves of a state of 100 bytes.
    fn damaged(kind: CommandKind) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("it's the state");
        std::fs::write(&state, [0xff; 100]).unwrap();
        let exec_state = crate::backend::ExecState {
            variable: "STATE",
            variables: "STATE",
            variable_stays: false,
            state: "",
            ram: "",
        };
        let state_path = state.to_str().unwrap();
        let targets = Targets { state: state_path, earlier: None, log: "", exec_state };
        let path = folder.path().join("script");
        crate::process::program::write(&path, script(kind, "/bin/true", targets).as_bytes())
            .unwrap();
        let run = |rehearsal: bool| {
            let mut command = Command::new("/bin/sh");
            command.arg(&path);
            if rehearsal {
                command.env("CPR_REHEARSAL", "3");
            }
            assert!(command.status().unwrap().success());
        };
        run(true);
        assert_eq!(std::fs::read(&state).unwrap(), [0xff; 100], "damaged in the rehearsal");
        run(false);
        std::fs::read(&state).unwrap()
    }

    #[test]
    fn damages_the_state_only_in_the_real_run() {
        assert_eq!(damaged(CommandKind::TruncatesState), [0xff; 50]);
        assert_eq!(damaged(CommandKind::EmptiesState), [0; 0]);
        let flipped = damaged(CommandKind::FlipsState);
        assert_eq!((flipped.len(), flipped[50]), (100, 0xfe));
        assert_eq!(flipped.iter().filter(|byte| **byte != 0xff).count(), 1);
    }
}
