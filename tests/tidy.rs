//! The rules of the source tree that the compiler does not hold: layers (imports go only downwards), who may use
//! glommio and rustls, a header in each file, files of a readable length, nothing left undone.
//!
//! It reads text, not syntax trees: a rule that can be checked with some lines of code is checked.

use std::fs;
use std::path::{Path, PathBuf};

/// The layer of each top module. A file may use modules of its own layer and of those below.
const LAYERS: [(u8, &str, &[&str]); 7] = [
    (0, "values", &["address", "clock", "envelope", "event", "id", "limits", "reply"]),
    (1, "protocol", &["smtp"]),
    (2, "decisions", &["policy", "queue"]),
    // Figures are values that shards count in; they stand here because they speak of the queue.
    (3, "machine", &["io", "metrics"]),
    (4, "shards and control", &["shard", "control"]),
    (5, "assembly", &["config", "server"]),
    (6, "command line", &["cli"]),
];

/// Uses that go upwards all the same: file, module, reason.
const EXCEPTIONS: [(&str, &str, &str); 0] = [];

/// Crates that only one module may use.
const KEPT: [(&str, &str); 2] = [("glommio", "src/io/"), ("rustls", "src/io/")];

/// The files of the relay that may hold `unsafe`, and what for; tests and measuring tools aside. The argument for each block
/// stands at it, which clippy sees to.
const UNSAFE: [(&str, &str); 7] = [
    ("spool/src/std_disk.rs", "fallocate and fadvise, which the standard library does not have"),
    ("src/io/clock.rs", "the kernel's clocks"),
    ("src/io/listener.rs", "a socket that was bound elsewhere is given to the executor"),
    ("src/io/net.rs", "socket calls that do not wait"),
    ("src/io/probe.rs", "whether there is io_uring, and the limits of this process"),
    ("src/io/ring.rs", "the call by which the executor makes its rings"),
    ("src/io/turn.rs", "a connecting socket is given to the executor"),
];

/// Lines of a file before its tests.
const LINES_MAX: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files, by their path from the root.
fn rust_files() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for directory in ["src", "spool", "loadgen", "bench", "tests", "fuzz"] {
        collect(&root().join(directory), &mut files);
    }
    files.sort();
    assert!(files.len() > 30, "the tree was not found");
    files
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).unwrap())
        })
        .collect()
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if !["target", "corpus", "artifacts"].contains(&name.as_str()) {
                collect(&path, files);
            }
        } else if path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
}

/// Whether the whole file is for tests, which may use everything: it stands in tests/, or its parent declares it below
/// `#[cfg(test)]`.
fn is_test_file(name: &str) -> bool {
    let path = Path::new(name);
    let module = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let directory = path.parent().unwrap_or(Path::new(""));
    let parents = [directory.join("mod.rs"), directory.join("lib.rs"), directory.with_extension("rs")];
    let declared = |parent: &PathBuf| {
        let text = fs::read_to_string(root().join(parent)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let wanted = format!("mod {module};");
        let marked = lines.windows(2).any(|pair| pair[0] == "#[cfg(test)]" && pair[1].ends_with(&wanted));
        // What a test file declares is tests too.
        marked || lines.contains(&&*wanted) && is_test_file(&parent.to_string_lossy())
    };
    name.starts_with("tests/") || name.contains("/tests/") || parents.iter().any(declared)
}

/// The file's code before its tests, without comments.
fn code(text: &str) -> String {
    let mut code = String::new();
    for line in before_tests(text) {
        let line = match line.find("//") {
            // Not a comment but an address in a text.
            Some(at) if at > 0 && line.as_bytes()[at - 1] == b':' => line,
            Some(at) => &line[..at],
            None => line,
        };
        code.push_str(line);
        code.push('\n');
    }
    code
}

fn before_tests(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    let end = lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].contains("mod ") && pair[1].ends_with('{'))
        .unwrap_or(lines.len());
    lines[..end].to_vec()
}

fn is_word(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

/// The top modules that stand after `crate::` in the code, those in braces included.
fn used_modules(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find("crate::") {
        let whole_word = !rest[..at].ends_with(|c: char| is_word(c) || c == '$');
        rest = &rest[at + "crate::".len()..];
        if !whole_word {
            continue;
        }
        match rest.strip_prefix('{') {
            Some(group) => modules.extend(first_words(group)),
            None => modules.push(rest.chars().take_while(|c| is_word(*c)).collect()),
        }
    }
    modules
}

/// The words at the beginning of each part of a group in braces.
fn first_words(group: &str) -> Vec<String> {
    let (mut depth, mut begins, mut words) = (0, true, Vec::new());
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            letter if begins && is_word(letter) => {
                words.push(group[at..].chars().take_while(|c| is_word(*c)).collect());
                begins = false;
            }
            _ => {}
        }
    }
    words
}

fn layer_of(module: &str) -> Option<u8> {
    LAYERS.iter().find(|(_, _, modules)| modules.contains(&module)).map(|(layer, ..)| *layer)
}

/// The top module that a file of src belongs to; none for lib.rs and main.rs.
fn module_of(name: &str) -> Option<&str> {
    let inner = name.strip_prefix("src/")?;
    let module = inner.split('/').next()?.trim_end_matches(".rs");
    (module != "lib" && module != "main").then_some(module)
}

#[test]
fn imports_go_only_downwards() {
    let mut wrong = Vec::new();
    for (name, text) in rust_files() {
        let Some(module) = module_of(&name).filter(|_| !is_test_file(&name)) else { continue };
        let layer =
            layer_of(module).unwrap_or_else(|| panic!("{name}: the module {module} has no layer in tests/tidy.rs"));
        for used in used_modules(&code(&text)) {
            let Some(other) = layer_of(&used) else { continue };
            let excused = EXCEPTIONS.iter().any(|(file, module, _)| *file == name && *module == used);
            if other > layer && !excused {
                wrong.push(format!("{name} (layer {layer}) uses {used} (layer {other})"));
            }
        }
    }
    assert!(wrong.is_empty(), "imports go upwards:\n{}", wrong.join("\n"));
}

#[test]
fn the_map_of_modules_and_the_layers_agree() {
    let map = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    for line in map.lines() {
        if let Some(module) = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')) {
            assert!(layer_of(module).is_some(), "the module {module} has no layer in tests/tidy.rs");
        }
    }
}

#[test]
fn each_crate_stays_where_it_belongs() {
    for (name, text) in rust_files() {
        if is_test_file(&name) {
            continue;
        }
        let code = code(&text);
        for (kept, place) in KEPT {
            let used = code.match_indices(kept).any(|(at, _)| {
                let before = code[..at].chars().next_back();
                let after = &code[at + kept.len()..];
                before.is_none_or(|c| !is_word(c) && c != '"') && after.starts_with("::")
            });
            // Crates beside the relay may: load is made with them, and they are measured alone.
            let beside = ["loadgen/", "bench/"].iter().any(|beside| name.starts_with(beside));
            assert!(!used || name.starts_with(place) || beside, "{name} uses {kept}, which is for {place}");
        }
    }
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    for (name, text) in rust_files() {
        if is_test_file(&name) || !(name.starts_with("src/") || name.starts_with("spool/src/")) {
            continue;
        }
        let code = code(&text);
        let used = code.split(|c: char| !is_word(c)).any(|word| word == "unsafe");
        let named = UNSAFE.iter().any(|(file, _)| *file == name);
        assert_eq!(used, named, "{name}: unsafe code and its list in tests/tidy.rs do not agree");
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for (name, text) in rust_files() {
        assert!(text.starts_with("//! "), "{name}: the first line is no `//!` header");
    }
}

#[test]
fn files_are_short_enough_to_read() {
    let long: Vec<String> = rust_files()
        .iter()
        .filter(|(name, _)| !is_test_file(name))
        .map(|(name, text)| (name, before_tests(text).len()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(name, lines)| format!("{name} has {lines} lines before its tests"))
        .collect();
    assert!(long.is_empty(), "split by noun:\n{}", long.join("\n"));
}

#[test]
fn nothing_is_left_undone() {
    // In two parts, so that this file does not hold them itself.
    let words = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"], ["dbg", "!("], ["todo", "!("], ["unimplemented", "!("]];
    for (name, text) in rust_files() {
        for word in &words {
            let word = word.concat();
            let found = text.match_indices(&word).any(|(at, _)| {
                let before = text[..at].chars().next_back();
                let after = text[at + word.len()..].chars().next();
                before.is_none_or(|c| !is_word(c)) && (word.ends_with('(') || after.is_none_or(|c| !is_word(c)))
            });
            assert!(!found, "{name} holds {word}");
        }
    }
}

#[test]
fn the_rules_find_what_they_are_for() {
    assert_eq!(used_modules("use crate::{io::dns, limits::{A, B}, config};"), ["io", "limits", "config"]);
    assert_eq!(used_modules("let x = crate::server::serve(); $crate::cli"), ["server"]);
    assert_eq!(
        code("use crate::a; // crate::b\nx(\"http://y\")\n#[cfg(test)]\nmod tests {\n"),
        "use crate::a; \nx(\"http://y\")\n"
    );
    assert!(layer_of("io") > layer_of("queue") && layer_of("nothing").is_none());
}
