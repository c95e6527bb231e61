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

/// Creates a folder with runs of two themes: in one every case passes, in the other every case
/// fails.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for theme in ["good", "bad"] {
        let theme = folder.path().join("scenarios").join(theme);
        std::fs::create_dir_all(&theme).unwrap();
        std::fs::write(theme.join("twice.toml"), SCENARIO).unwrap();
    }
    let run = ["run", "--backend", "mock"];
    let good = ["--filter", "good/", "--json", "good.json"];
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
            content(&mut browser);
            filter(&mut browser);
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
    assert_eq!(browser.eval("document.title"), "4 cases, 2 failed");
    assert_eq!(browser.eval("document.querySelectorAll('h1').length"), 1);
    assert_eq!(browser.eval("document.querySelectorAll('#matrix ~ * a.cell.fail').length"), 2);
    assert_eq!(browser.eval("document.querySelectorAll('details.case').length"), 4);
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
    let shown =
        "[...document.querySelectorAll('details.case')].filter((c) => c.checkVisibility()).length";
    assert_eq!(browser.eval(shown), 4);
    browser.eval("document.getElementById('text').focus()");
    browser.type_text("TIMES=2");
    assert_eq!(browser.eval(shown), 2);
    assert_eq!(browser.eval("document.getElementById('shown').textContent"), "2 of 4 cases");
    browser.eval("document.getElementById('only-failed').click()");
    assert_eq!(browser.eval(shown), 1);
    browser.type_text(" nothing like it");
    assert_eq!(browser.eval(shown), 0);
    browser.eval("document.getElementById('text').select()");
    browser.type_text(" ");
    assert_eq!(browser.eval(shown), 2);
    browser.eval("document.getElementById('only-failed').click()");
    assert_eq!(browser.eval(shown), 4);
}

/// Checks the page with everything expanded: nothing overflows, all text is readable, and it makes
/// no network requests.
fn look(browser: &mut Chromium, name: &str, page: &Path) {
    browser.eval("document.querySelectorAll('details').forEach((d) => { d.open = true; })");
    let sizes = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]";
    let sizes = browser.eval(sizes);
    assert_eq!(sizes[0], sizes[1], "{name} is wider than the window");
    assert_eq!(browser.eval(POOR_CONTRAST), json!([]), "{name}");
    let picture = BASE64_STANDARD.decode(browser.picture()).unwrap();
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(pictures.join(format!("{name}.png")), picture).unwrap();
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
    let first = "document.querySelector('.bad a').textContent";
    assert_eq!(browser.eval(first), "bad/twice[times=1]");
    let is_open = "document.getElementById('case-bad/twice,times=1').open";
    assert_eq!(browser.eval(is_open), false);
    browser.eval("document.querySelector('.bad a').click()");
    let opened = format!(
        "new Promise((done) => {{ if ({is_open}) done(true); else addEventListener('hashchange', () => done({is_open})); }})"
    );
    assert_eq!(browser.eval(&opened), true);
}
