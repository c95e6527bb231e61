//! Commands that start the VMM through a wrapper: wrappers that fork and wait, and wrappers that
//! reduce the limits, rights or system calls that the new VMM gets.

use super::damaging::quoted;
use crate::carry;
use crate::restricted::Restriction;
use crate::scenario::CommandKind;

/// The form of a wrapper.
pub enum Wrapping {
    /// Words that precede the VMM's arguments.
    Words(Vec<String>),
    /// A shell script, called with the VMM's arguments.
    Script(String),
}

/// Returns the wrapper of `kind` for `binary`, if `kind` is a wrapper; `file` is a path that it may
/// use.
pub fn wrapping(kind: CommandKind, binary: &str, file: &str) -> Option<Wrapping> {
    use CommandKind::*;
    let words = |words: &[&str]| {
        Wrapping::Words(
            words.iter().map(|&word| word.to_owned()).chain([binary.to_owned()]).collect(),
        )
    };
    let vmm = quoted(binary);
    let script = |lines: String| Wrapping::Script(format!("#!/bin/sh\n{lines}"));
    Some(match kind {
        ForksScript => script(format!("{vmm} \"$@\"\nexit $?\n")),
        ForksShC => words(&["sh", "-c", "\"$@\"; exit $?", "sh"]),
        ForksTimeout => words(&["timeout", "600"]),
        ForksFlock => words(&["flock", file]),
        ForksXargs => words(&["xargs", "-a", "/dev/null"]),
        ForksUnshare => words(&["unshare", "-p", "-f"]),
        ForksStrace => words(&["strace", "-f", "-o", "/dev/null"]),
        ForksSetsid => words(&["setsid", "-f"]),
        // `script` takes the command as one word for a shell.
        ForksTypescript => {
            script(format!("exec script -q -e -c \"{vmm} $(printf \"'%s' \" \"$@\")\" /dev/null\n"))
        }
        ForksBackground => script(format!("nohup {vmm} \"$@\" &\nwait $!\n")),
        ForksPython => {
            let wait = "import subprocess, sys; \
                        sys.exit(subprocess.run(sys.argv[1:], close_fds=False).returncode)";
            words(&["python3", "-c", wait])
        }
        LowersNofile => script(format!("ulimit -n 16\nexec {vmm} \"$@\"\n")),
        LowersAs => script(format!("ulimit -v 524288\nexec {vmm} \"$@\"\n")),
        LowersStack => script(format!("ulimit -s 64\nexec {vmm} \"$@\"\n")),
        LowersSigpending => words(&["prlimit", "--sigpending=0"]),
        ChangesUser => words(&["setpriv", "--reuid=65534", "--clear-groups"]),
        FiltersIoctl => return restricted(Restriction::NoIoctl, binary),
        FiltersClone3 => return restricted(Restriction::NoClone3, binary),
        FiltersEventfd2 => return restricted(Restriction::NoEventfd2, binary),
        FiltersTimerCreate => return restricted(Restriction::NoTimerCreate, binary),
        ClosesDescriptors => return restricted(Restriction::NoDescriptors, binary),
        _ => return None,
    })
}

fn restricted(lowering: Restriction, binary: &str) -> Option<Wrapping> {
    let own = carry::own_binary().ok()?.to_string_lossy().into_owned();
    let words = [own.as_str(), carry::RESTRICTED, lowering.name(), binary];
    Some(Wrapping::Words(words.map(str::to_owned).into()))
}

/// Returns the program that `kind` needs, unless every system has it.
pub fn program(kind: CommandKind) -> Option<&'static str> {
    use CommandKind::*;
    Some(match kind {
        ForksTimeout => "timeout",
        ForksFlock => "flock",
        ForksXargs => "xargs",
        ForksUnshare => "unshare",
        ForksStrace => "strace",
        ForksSetsid => "setsid",
        ForksTypescript => "script",
        ForksPython => "python3",
        LowersSigpending => "prlimit",
        ChangesUser => "setpriv",
        _ => return None,
    })
}

/// Returns why `kind` is unsupported here, if so.
pub fn unmet(kind: CommandKind) -> Option<String> {
    let program = program(kind)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        return Some(format!("no {program} here"));
    }
    let for_root = matches!(kind, CommandKind::ForksUnshare | CommandKind::ChangesUser);
    let root = nix::unistd::geteuid().is_root();
    (for_root && !root).then(|| format!("{program} needs root here"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use clap::ValueEnum;

    use super::*;

    /// Each wrapper that forks and waits runs its command in another process.
    #[test]
    fn forking_wrappers_run_the_command_in_another_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let (shows, seen) = (path("shows"), path("seen"));
        let script = format!("#!/bin/sh\necho $PPID \"$@\" >{seen}.new\nmv {seen}.new {seen}\n");
        crate::process::program::write(shows.as_ref(), script.as_bytes()).unwrap();
        for kind in CommandKind::value_variants() {
            if !kind.forks() || unmet(*kind).is_some() {
                continue;
            }
            let words = match wrapping(*kind, &shows, &path("file")).unwrap() {
                Wrapping::Words(words) => words,
                Wrapping::Script(script) => {
                    crate::process::program::write(path("wrapper").as_ref(), script.as_bytes())
                        .unwrap();
                    vec![path("wrapper")]
                }
            };
            let mut wrapper =
                Command::new(&words[0]).args(&words[1..]).args(["a b", "c"]).spawn().unwrap();
            wrapper.wait().unwrap();
            let deadline =
                crate::observe::poll::Deadline::after(std::time::Duration::from_secs(20));
            let said =
                crate::observe::poll::until(deadline, || std::fs::read_to_string(&seen).ok());
            let said = said.unwrap_or_else(|| panic!("{kind:?} did not run its command"));
            std::fs::remove_file(&seen).unwrap();
            assert!(said.trim_end().ends_with("a b c"), "{kind:?}: {said}");
            let parent = said.split(' ').next();
            assert_ne!(parent, Some(std::process::id().to_string().as_str()), "{kind:?}");
        }
    }
}
