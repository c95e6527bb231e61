//! Tests of the HTML reports in a browser, wide and narrow, light and dark.

mod chromium;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use assert_cmd::Command;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chromium::Chromium;
use libtest_mimic::{Arguments, Trial};
use serde_json::json;

/// A scenario with markup in its summary, which must be shown as text.
const SCENARIO: &str = r#"
summary = "updated <script>window.hacked = 1</script><img src='http://127.0.0.1:9/x'>"
steps = ["boot", { migrate = { times = "${times}" } }, "quit"]

[matrix]
times = [1, 2]
"#;

/// A case that cannot run on the mock.
const IGNORED: &str = r#"
summary = "rehearsed"
steps = ["boot", { migrate = { command = "true", rehearsal = true, expect = { refused = "no" } } }]
"#;

/// Evaluates to the names of the cases that are shown, in order.
const SHOWN: &str = r"
[...document.querySelectorAll('details.case')].filter((c) => c.checkVisibility())
    .map((c) => c.querySelector('.name').textContent)";

/// Evaluates to the links inside the page whose target is missing.
const BROKEN_LINKS: &str = r"
[...document.querySelectorAll('a[href^=\'#\']')]
    .map((a) => decodeURIComponent(a.hash.slice(1)))
    .filter((id) => !document.getElementById(id))";

/// Evaluates to the first texts whose contrast to the background is too low (WCAG AA).
const POOR_CONTRAST: &str = r"(() => {
    const parse = (text) => text.match(/[\d.]+/g).map(Number);
    const light = ([r, g, b]) => {
        const part = (c) => ((c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    };
    const behind = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const color = parse(getComputedStyle(at).backgroundColor);
            if (color.length < 4 || color[3] > 0) return color;
        }
        return parse(getComputedStyle(document.body).backgroundColor);
    };
    const poor = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const node = walk.currentNode.parentElement;
        if (!walk.currentNode.data.trim() || ['SCRIPT', 'STYLE'].includes(node.tagName)) continue;
        const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${node.className}: ${node.textContent.slice(0, 40)}`);
    }
    return poor.slice(0, 5);
})()";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let path = chromium::find();
    let trials =
        [trial("run_report_page", &path, run_report_page), trial("case_page", &path, case_page)];
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

/// A test that is reported as ignored, with the reason, if there is no browser.
fn trial(name: &str, path: &Option<PathBuf>, test: fn(&Path)) -> Trial {
    match path.clone() {
        Some(path) => Trial::test(name, move || {
            test(&path);
            Ok(())
        }),
        None => {
            let why = "needs Chromium: run ci/install-chromium";
            match cpr_harness::run::requirements::all_required() {
                true => Trial::test(name, move || Err(why.into())),
                false => Trial::test(name, || Ok(())).with_kind(why).with_ignored_flag(true),
            }
        }
    }
}

fn harness(folder: &Path, args: &[&str], code: i32) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cpr-harness"));
    let done = command.current_dir(folder).args(args).assert().code(code);
    String::from_utf8_lossy(&done.get_output().stdout).into_owned()
}

/// Creates a folder with runs of three themes: in one every case passes, in another every case
/// fails, of a planted fault, and one has a case that is ignored.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for theme in ["good", "bad"] {
        let theme = folder.path().join("scenarios").join(theme);
        std::fs::create_dir_all(&theme).unwrap();
        std::fs::write(theme.join("twice.toml"), SCENARIO).unwrap();
    }
    std::fs::create_dir_all(folder.path().join("scenarios/other")).unwrap();
    std::fs::write(folder.path().join("scenarios/other/no.toml"), IGNORED).unwrap();
    let run = ["run", "--backend", "mock"];
    let good = ["--skip", "bad/", "--json", "good.json"];
    harness(folder.path(), &[&run[..], &good].concat(), 0);
    let bad = ["--filter", "bad/", "--json", "bad.json", "--fault", "leak-fd"];
    harness(folder.path(), &[&run[..], &bad].concat(), 1);
    folder
}

fn run_report_page(chromium: &Path) {
    let folder = folder();
    let merge = ["report", "merge", "good.json", "bad.json", "--html", "report.html"];
    harness(folder.path(), &merge, 1);
    let page = folder.path().join("report.html");
    let mut browser = Chromium::start(chromium);
    for width in [1280, 390] {
        for scheme in ["light", "dark"] {
            browser.open(&page, width, scheme);
            save_picture(&mut browser, &format!("report-{width}-{scheme}-closed"));
            content(&mut browser);
            filter(&mut browser);
            sort(&mut browser);
            copy(&mut browser);
            look(&mut browser, &format!("report-{width}-{scheme}"), &page);
        }
    }
    link_opens_its_case(&mut browser, &page);
}

fn case_page(chromium: &Path) {
    let folder = folder();
    let told = harness(folder.path(), &["show", "evidence/bad/twice,times=1", "--html"], 0);
    assert_eq!(told, "evidence/bad/twice,times=1/case.html\n");
    let page = folder.path().join(told.trim());
    let mut browser = Chromium::start(chromium);
    for width in [1280, 390] {
        browser.open(&page, width, "light");
        let text = browser.eval("document.body.innerText").to_string();
        for part in ["✗ failed bad/twice[times=1]", "Phases", "+ new", "Timeline", "replay "] {
            assert!(text.contains(part), "{part}: {text}");
        }
        look(&mut browser, &format!("case-{width}"), &page);
    }
}

fn content(browser: &mut Chromium) {
    assert_eq!(browser.eval("document.title"), "Failed: 2 of 5 cases");
    let headings = "[...document.querySelectorAll('h1')].map((h) => h.textContent)";
    assert_eq!(browser.eval(headings), json!(["✗ Failed: 2 of 5 cases"]));
    let header = browser.eval("document.querySelector('header').textContent").to_string();
    for part in ["bug planted: --fault leak-fd", "--json bad.json", "vmm-xxh3", "kernel", "cpu"] {
        assert!(header.contains(part), "{part}: {header}");
    }
    let marked = "[...document.querySelectorAll('.case')].filter((c) => \
        c.querySelector('summary').textContent.includes('bug planted')).map((c) => c.dataset.kind)";
    assert_eq!(browser.eval(marked), json!(["fail", "fail"]));
    // Both cases fail for one reason.
    let groups = "[...document.querySelectorAll('.group')].map((g) => g.querySelector('strong').textContent)";
    assert_eq!(browser.eval(groups), json!(["✗ 2 cases"]));
    let axes = "[...document.querySelectorAll('table.axes thead')].map((t) => t.innerText.trim())";
    assert_eq!(browser.eval(axes), json!(["times →\t1\t2", "times →\t1\t2"]));
    let worst = "document.querySelector('#blackouts ~ p a').hash === \
        document.querySelector('.shares tbody tr td a').hash";
    assert_eq!(browser.eval(worst), true);
    let themes = "[...document.querySelectorAll('.shares tbody th')].map((t) => t.textContent)";
    // The failed cases have no update that succeeded.
    assert_eq!(browser.eval(themes), json!(["all", "good"]));
    assert_eq!(browser.eval("document.querySelectorAll('#matrix ~ * a.cell.fail').length"), 2);
    assert_eq!(browser.eval("document.querySelectorAll('details.case').length"), 5);
    let first = "document.querySelector('details.case[data-kind=fail]')";
    let text = browser.eval(&format!("{first}.textContent")).to_string();
    for part in ["fds", "-> /dev/null is new", "+ new", "cpr-harness replay ", "cpr-harness show "]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Markup in a summary is shown as text.
    assert!(text.contains("<script>window.hacked"), "{text}");
    assert_eq!(browser.eval("window.hacked === undefined && !document.querySelector('img')"), true);
    assert_eq!(browser.eval(BROKEN_LINKS), json!([]));
    let evidence = format!("{first}.querySelector('.files a').getAttribute('href')");
    assert_eq!(browser.eval(&evidence), "evidence/bad/twice,times=1/");
}

/// Types into the search field and ticks the box.
fn filter(browser: &mut Chromium) {
    let shown = &format!("{SHOWN}.length");
    assert_eq!(browser.eval(shown), 5);
    browser.eval("document.getElementById('text').focus()");
    browser.type_text("TIMES=2");
    assert_eq!(browser.eval(shown), 2);
    assert_eq!(browser.eval("document.getElementById('shown').textContent"), "2 of 5 cases");
    browser.eval("document.getElementById('only-failed').click()");
    assert_eq!(browser.eval(shown), 1);
    browser.type_text(" nothing like it");
    assert_eq!(browser.eval(shown), 0);
    browser.eval("document.getElementById('text').select()");
    browser.type_text(" ");
    assert_eq!(browser.eval(shown), 2);
    browser.eval("document.getElementById('only-failed').click()");
    assert_eq!(browser.eval(shown), 5);
}

/// Chooses each order, and the themes again.
fn sort(browser: &mut Chromium) {
    let mut by = |key: &str| {
        let choose = format!(
            "{{ const sort = document.getElementById('sort'); sort.value = '{key}'; sort.dispatchEvent(new Event('input')); }}"
        );
        browser.eval(&choose);
        let of = |what: &str| {
            format!(
                "[...document.querySelectorAll('details.case')].filter((c) => c.checkVisibility()).map((c) => {what})"
            )
        };
        (
            browser.eval(SHOWN),
            browser.eval(&of("[c.dataset.kind, c.dataset.took, c.dataset.blackout]")),
        )
    };
    let [bad, good] =
        ["bad", "good"].map(|theme| [1, 2].map(|n| format!("{theme}/twice[times={n}]")));
    let names = json!([bad[0], bad[1], good[0], good[1], "other/no"]);
    let (by_theme, _) = by("");
    assert_eq!(by_theme.as_array().unwrap().len(), 5);
    assert_eq!(by("name").0, names);
    let (_, kinds) = by("verdict");
    let kinds: Vec<_> = kinds.as_array().unwrap().iter().map(|of| of[0].clone()).collect();
    assert_eq!(kinds, ["fail", "fail", "pass", "pass", "ignored"]);
    for (key, column) in [("took", 1), ("blackout", 2)] {
        let (_, values) = by(key);
        let number =
            |of: &serde_json::Value| of[column].as_str().map(|n| n.parse::<u64>().unwrap());
        let values: Vec<_> = values.as_array().unwrap().iter().map(number).collect();
        assert!(values.windows(2).all(|two| two[0] >= two[1]), "{key}: {values:?}");
        assert!(values[0] > values[3], "{key}: {values:?}");
    }
    assert_eq!(by("").0, by_theme, "not as at the beginning");
}

/// Clicks on the button of the first command.
fn copy(browser: &mut Chromium) {
    browser.eval("document.querySelector('details.case').open = true");
    browser.allow_clipboard();
    let command = "document.querySelector('details.case pre.line')";
    let wanted = browser.eval(&format!("{command}.textContent"));
    assert!(wanted.as_str().unwrap().contains("cpr-harness replay "), "{wanted}");
    let button = format!("{command}.parentElement.querySelector('button.copy')");
    assert_eq!(browser.eval(&format!("{button}.textContent")), "Copy");
    browser.click(&button);
    let told = format!(
        "new Promise((done) => {{ \
            const look = () => {{ if ({button}.textContent !== 'Copy') done({button}.textContent); }}; \
            new MutationObserver(look).observe({button}, {{ childList: true }}); look(); }})"
    );
    assert_eq!(browser.eval(&told), "Copied");
    assert_eq!(browser.eval("navigator.clipboard.readText()"), wanted);
    browser.eval("document.querySelector('details.case').open = false");
}

fn save_picture(browser: &mut Chromium, name: &str) {
    let picture = BASE64_STANDARD.decode(browser.picture()).unwrap();
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(pictures.join(format!("{name}.png")), picture).unwrap();
}

/// Checks the page with everything expanded: nothing overflows, all text is readable, and it makes
/// no network requests.
fn look(browser: &mut Chromium, name: &str, page: &Path) {
    browser.eval("document.querySelectorAll('details').forEach((d) => { d.open = true; })");
    let sizes = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]";
    let sizes = browser.eval(sizes);
    assert_eq!(sizes[0], sizes[1], "{name} is wider than the window");
    assert_eq!(browser.eval(POOR_CONTRAST), json!([]), "{name}");
    save_picture(browser, name);
    let url = format!("file://{}", page.display());
    for event in &browser.events {
        let told = event["method"].as_str().unwrap_or_default();
        let complaint = ["Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"]
            .contains(&told);
        assert!(!complaint, "{name}: {event}");
        let asked = event["params"]["request"]["url"].as_str().unwrap_or(&url);
        assert!(
            told != "Network.requestWillBeSent" || asked == url || asked == "data:,",
            "{asked}"
        );
    }
}

fn link_opens_its_case(browser: &mut Chromium, page: &Path) {
    browser.open(page, 390, "light");
    // Cases finish in any order; the page sorts them by name.
    let first = "document.querySelector('#first').textContent";
    assert_eq!(browser.eval(first), "↓ First failure: bad/twice[times=1]");
    let is_open = "document.getElementById('case-bad/twice,times=1').open";
    assert_eq!(browser.eval(is_open), false);
    browser.eval("document.querySelector('#first').click()");
    let opened = format!(
        "new Promise((done) => {{ if ({is_open}) done(true); else addEventListener('hashchange', () => done({is_open})); }})"
    );
    assert_eq!(browser.eval(&opened), true);
}
