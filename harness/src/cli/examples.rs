//! Command lines that `--help` shows; a test reads each of them as a shell would.

/// To begin with.
pub(super) const PROGRAM: &str = "\
To begin with:
  cpr-harness doctor                                     what can run on this host
  cpr-harness run --filter update/running                boot, update, check
  cpr-harness run --vmm /usr/bin/my-vmm                  the same on another build
  cpr-harness run --vmm qemu                             and on QEMU
  cpr-harness replay evidence/update/stopped             one case again
  cpr-harness new theme/name                             a scenario of one's own
Each command has a --help of its own.";

/// Of `run`.
pub(super) const RUN: &str = "\
Examples:
  cpr-harness run                                        all scenarios
  cpr-harness run --filter failed/ --filter refused/     updates that must not succeed
  cpr-harness run --filter update/running --jobs 1 --no-audits   one at a time: for blackouts
  cpr-harness run --vmm ./cpr-vmm --require-all          another build; a miss is an error
  cpr-harness run --keep --filter kept/ my/case.toml     leave a failed VM up to look at

Each case leaves evidence in evidence/THEME/NAME, and a case that fails ends with the command that
runs exactly that again.";

/// Of `list`.
pub(super) const LIST: &str = "\
Examples:
  cpr-harness list --filter fault
  cpr-harness list my/scenarios";

/// Of `replay`.
pub(super) const REPLAY: &str = "\
Examples:
  cpr-harness replay evidence/update/stopped
  cpr-harness replay evidence/update/stopped --vmm ./cpr-vmm --keep";

/// Of `show`.
pub(super) const SHOW: &str = "\
Examples:
  cpr-harness show evidence/update/stopped
  cpr-harness show evidence/update/stopped --source harness,qmp-received
  cpr-harness show evidence/update/stopped --html=page.html";

/// Of `report`.
pub(super) const REPORT: &str = "\
Examples, for the shards of one run:
  cpr-harness report merge 1.json 2.json --html report.html --junit junit.xml
  cpr-harness report merge evidence-1 evidence-2 --json all.json";

/// Of `explore`.
pub(super) const EXPLORE: &str = "\
Examples:
  cpr-harness explore --steps 500
  cpr-harness explore --seed 7 --steps 500 --vmm ./cpr-vmm
  cpr-harness explore --for 10m --write found";

/// Of `matrix`.
pub(super) const MATRIX: &str = "\
Examples:
  cpr-harness matrix ./cpr-vmm-1.0 ./cpr-vmm-1.1
  cpr-harness matrix ./cpr-vmm-1.0 cpr-vmm --filter update/ --must-update";

/// Of `catalogue`.
pub(super) const CATALOGUE: &str = "\
Examples:
  cpr-harness catalogue --filter leak
  cpr-harness catalogue --clean 20
  cpr-harness catalogue --random 300 --seed 1";

/// Of `conform`.
pub(super) const CONFORM: &str = "\
Examples:
  cpr-harness conform --vmm cpr-vmm --vmm qemu
  cpr-harness conform --vmm cpr-vmm --vmm qemu --filter update/";

/// Of `bench`.
pub(super) const BENCH: &str = "\
Examples:
  cpr-harness bench --vmm cpr-vmm --vmm qemu
  cpr-harness bench --memory 64M,1G --cpus 1,4 --pages 4k,thp --runs 10 --json times.json
  cpr-harness bench compare old.json new.json";

/// Of `soak`.
pub(super) const SOAK: &str = "\
Examples:
  cpr-harness soak --updates 2000 --vms 4
  cpr-harness soak --for 8h --vms 2 --interval 1m --vmm ./cpr-vmm";

/// Of `new`.
pub(super) const NEW: &str = "\
Example:
  cpr-harness new update/mine";

/// Of `schema`.
pub(super) const SCHEMA: &str = "\
Example, for editors that know Taplo's directive `#:schema scenario.schema.json`:
  cpr-harness schema > scenario.schema.json";

/// Of `completions`.
pub(super) const COMPLETIONS: &str = "\
Examples:
  cpr-harness completions bash > /etc/bash_completion.d/cpr-harness
  cpr-harness completions zsh > ~/.zfunc/_cpr-harness";

/// Of `man`.
pub(super) const MAN: &str = "\
Examples:
  cpr-harness man > cpr-harness.1
  cpr-harness man --dir /usr/local/share/man/man1";

#[cfg(test)]
mod tests {
    use super::super::command;

    /// Every line that begins like a command, up to a redirection or its explanation.
    fn lines(text: &str) -> Vec<String> {
        let of_us = text.lines().filter(|line| line.starts_with("  cpr-harness "));
        let end = |line: &str| line.trim_start().find("   ").or(line.trim_start().find(" >"));
        of_us
            .map(|line| line.trim_start()[..end(line).unwrap_or(line.len() - 2)].to_owned())
            .collect()
    }

    #[test]
    fn every_example_is_a_command_line_and_almost_every_command_has_one() {
        let mut without = Vec::new();
        let mut texts = vec![command().get_after_help().unwrap().to_string()];
        for sub in command().get_subcommands() {
            match sub.get_after_help() {
                Some(text) => texts.push(text.to_string()),
                None => without.push(sub.get_name().to_owned()),
            }
        }
        assert_eq!(without, ["vmm", "guests", "doctor"]);
        for line in texts.iter().flat_map(|text| lines(text)) {
            let parsed = command().try_get_matches_from(line.split_ascii_whitespace());
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn a_line_is_read_up_to_what_explains_it() {
        let text = "  cpr-harness run a     all\n  cpr-harness man > x\n  cpr-harness list\nfoo";
        assert_eq!(lines(text), ["cpr-harness run a", "cpr-harness man", "cpr-harness list"]);
    }
}
