//! Reading a configuration takes memory and work linear in its length, however it is written: what is
//! held at any time, and what is asked of the allocator in all, stay below a share of each byte.

#![expect(unsafe_code, reason = "only an allocator that counts knows what a parser holds")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use skein_core::config::{self, Format, Loaded, MAX_BYTES};

/// Bytes held at a time for one byte of the file, at most. TOML's comes from its parser, in which a
/// part of a dotted key is a table of 1,100 bytes.
fn most_held(format: Format) -> usize {
    match format {
        Format::Toml => 600,
        Format::Json | Format::Yaml => 100,
    }
}

/// Bytes asked for in all for one byte of the file, at most.
const MOST_ASKED: usize = 1200;
/// What a file of any length may take beside.
const FREE: usize = 256 << 10;

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static ASKED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(held, Relaxed);
        ASKED.fetch_add(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that were held while `work` ran, beyond those held before, and those asked for.
fn counted<T>(work: impl FnOnce() -> T) -> (usize, usize, T) {
    let (held, asked) = (HELD.load(Relaxed), ASKED.load(Relaxed));
    PEAK.store(held, Relaxed);
    let value = work();
    (PEAK.load(Relaxed) - held, ASKED.load(Relaxed) - asked, value)
}

/// Reads a text and what is said about it; then, if it loads, its Machines' configuration.
fn read(text: &str, format: Format) -> Loaded {
    let loaded = config::load(text, format);
    drop(config::render("fly.toml", text, &loaded.diagnostics));
    if let Some(config) = &loaded.config {
        drop(config.machine(&config.default_group()));
    }
    loaded
}

/// `unit` until `length` bytes are full, between `start` and `end`.
fn filled(length: usize, start: &str, unit: &str, end: &str) -> String {
    let count = (length - start.len() - end.len()) / unit.len();
    format!("{start}{}{end}", unit.repeat(count))
}

fn hard(length: usize) -> Vec<(&'static str, Format, String)> {
    let fill = |start: &str, unit: &str, end: &str| filled(length, start, unit, end);
    let numbered = |start: &str, line: &dyn Fn(usize) -> String| {
        let mut text = start.to_owned();
        for index in 0.. {
            let line = line(index);
            if text.len() + line.len() > length {
                break;
            }
            text.push_str(&line);
        }
        text
    };
    let laughs = numbered("a0: &a0 [lol]\n", &|i| {
        format!("a{}: &a{} [{}*a{i}]\n", i + 1, i + 1, format!("*a{i}, ").repeat(8))
    });
    use Format::{Json, Toml, Yaml};
    vec![
        (
            "ports",
            Toml,
            numbered("[[services]]\n", &|i| format!("[[services.ports]]\nport = {}\n", i % 65_535 + 1)),
        ),
        ("ports in a list", Toml, fill("[[services]]\nports = [", "{port=80},", "]\n")),
        ("services", Toml, fill("", "[[services]]\na=1\n", "")),
        ("keys", Toml, numbered("", &|i| format!("k{i}=1\n"))),
        ("keys of env", Toml, numbered("[env]\n", &|i| format!("k{i}=1\n"))),
        ("groups", Toml, numbered("[processes]\n", &|i| format!("g{i}=\"\"\n"))),
        ("unknown groups", Toml, fill("[http_service]\nprocesses = [", "\"b\",", "]\n")),
        ("words of a command", Toml, fill("[processes]\napp = \"", "a ", "\"\n")),
        ("a text", Toml, fill("app = \"", "x", "\"\n")),
        ("empty tables", Toml, fill("user_data = [", "{},", "]\n")),
        ("empty lists", Toml, fill("user_data = [", "[],", "]\n")),
        ("numbers", Toml, fill("user_data = [", "1,", "]\n")),
        ("empty texts", Toml, fill("user_data = [", "\"\",", "]\n")),
        ("open lists", Toml, fill("a = ", "[", "")),
        ("dotted key", Toml, fill("", "a.", "a = 1")),
        ("headers", Toml, numbered("", &|i| format!("[k{i}]\n"))),
        ("lists of tables", Toml, fill("", "[[a]]\n", "")),
        ("tables of dotted keys", Toml, fill("a = [", "{a.a.a.a.a.a=1},", "]\n")),
        ("one-key tables", Toml, fill("a = [", "{a=1},", "]\n")),
        ("two-key tables", Toml, fill("a = [", "{a=1,b=1},", "]\n")),
        ("nested tables", Toml, fill("a = [", "{a={a={a={}}}},", "]\n")),
        ("one-key sections", Toml, fill("", "[[a]]\na=1\n", "")),
        ("sub sections", Toml, fill("", "[[a]]\n[a.b]\n", "")),
        ("broken lines", Toml, fill("", "=\n", "")),
        ("quotes", Toml, fill("", "a=\"\n", "")),
        ("lines", Toml, fill("", "\n", "")),
        ("open lists", Json, fill("", "[", "")),
        ("empty tables", Json, fill("{\"user_data\":[", "{},", "{}]}")),
        ("empty lists", Json, fill("{\"user_data\":[", "[],", "[]]}")),
        ("numbers", Json, fill("{\"user_data\":[", "1,", "1]}")),
        ("keys", Json, numbered("{\"a\":1", &|i| format!(",\"{i}\":1"))),
        ("the same key", Json, fill("{", "\"a\":1,", "\"a\":1}")),
        ("ports", Json, fill("{\"services\":[{\"ports\":[", "{\"port\":80},", "{}]}]}")),
        ("empty items", Yaml, fill("user_data:\n", "-\n", "")),
        ("empty tables", Yaml, fill("user_data: [", "{},", "]\n")),
        ("numbers", Yaml, fill("user_data: [", "1,", "]\n")),
        ("open lists", Yaml, fill("", "[", "")),
        ("keys", Yaml, numbered("", &|i| format!("k{i}: 1\n"))),
        ("billion laughs", Yaml, laughs),
        ("aliases", Yaml, fill("a: &a [1, 2, 3, 4, 5, 6, 7, 8]\nuser_data: [", "*a,", "]\n")),
        (
            "aliases of a text",
            Yaml,
            fill("a: &a xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\nuser_data: [", "*a,", "]\n"),
        ),
        ("merges", Yaml, fill("a: &a {x: 1, y: 2, z: 3}\nuser_data:\n", "- <<: *a\n", "")),
        ("anchors", Yaml, numbered("user_data:\n", &|i| format!("- &a{i} x\n"))),
        ("documents", Yaml, fill("", "---\n", "")),
        ("other characters", Yaml, fill("", "ü", "")),
    ]
}

/// One test, since it counts what the whole process does.
#[test]
fn memory_and_work_are_linear_in_the_length_of_the_file() {
    let mut cases: Vec<_> = [MAX_BYTES / 64, MAX_BYTES / 8].into_iter().flat_map(hard).collect();
    let whole = ["ports in a list", "tables of dotted keys", "billion laughs"];
    cases.extend(hard(MAX_BYTES).into_iter().filter(|(name, _, _)| whole.contains(name)));
    for (name, format, text) in cases {
        let length = text.len();
        assert!(length <= MAX_BYTES, "{format:?} {name}");
        let (held, asked, _) = counted(|| read(&text, format));
        assert!(
            held <= most_held(format) * length + FREE,
            "{format:?} {name}: {held} bytes held for {length}"
        );
        assert!(asked <= MOST_ASKED * length + FREE, "{format:?} {name}: {asked} bytes asked for {length}");
    }

    // Beyond the limit nothing is read at all: a hundred megabytes, a million ports.
    let mut ports = String::from("[[services]]\n");
    (0..1_000_000).for_each(|port| ports.push_str(&format!("[[services.ports]]\nport = {port}\n")));
    for text in ["a".repeat(100 << 20), ports] {
        for format in [Format::Toml, Format::Json, Format::Yaml] {
            let (held, _, loaded) = counted(|| read(&text, format));
            let said: Vec<String> = loaded.diagnostics.iter().map(ToString::to_string).collect();
            let why = format!("the file has more than {MAX_BYTES} bytes, the most that a configuration has");
            assert!(said.len() == 1 && said[0].contains(&why), "{said:?}");
            assert!(held <= FREE, "{format:?}: {held} bytes held for {}", text.len());
        }
    }
}
