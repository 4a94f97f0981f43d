//! What the documents say of files and codes is so.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::repository;

/// Files of the checkout with this extension, outside of what was built.
fn files(folder: &Path, extension: &str, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if !name.starts_with('.') && !["target", "node_modules"].contains(&name) {
                files(&path, extension, into);
            }
        } else if path.extension().is_some_and(|other| other == extension) {
            into.push(path);
        }
    }
}

fn all(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(folder, extension, &mut found);
    found
}

/// The document without its blocks of code and code in lines.
fn prose(text: &str) -> String {
    let outside: String =
        text.split("```").enumerate().filter(|(n, _)| n % 2 == 0).map(|(_, part)| part).collect();
    outside.split('`').enumerate().filter(|(n, _)| n % 2 == 0).map(|(_, part)| part).collect()
}

/// A heading as the part of an address, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept: String = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).collect();
    kept.replace(' ', "-")
}

#[test]
fn every_link_of_a_document_leads_somewhere() {
    let mut broken = Vec::new();
    let mut followed = 0;
    for file in all(&repository(), "md") {
        let text = std::fs::read_to_string(&file).unwrap();
        for link in prose(&text).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (path, part) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            let has_part = part.is_empty()
                || std::fs::read_to_string(&target)
                    .is_ok_and(|text| text.lines().any(|line| line.starts_with('#') && anchor(line) == part));
            if !target.exists() || !has_part {
                broken.push(format!("{}: {link}", file.display()));
            }
            followed += 1;
        }
    }
    assert!(followed > 100, "only {followed} links were found");
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

/// The word in quotes that a text begins with, or that a constant of this name stands for.
fn word<'a>(text: &'a str, constants: &[(&'a str, &'a str)]) -> Option<&'a str> {
    let text = text.trim_start();
    let is_code = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    if let Some(quoted) = text.strip_prefix('"') {
        return quoted.split('"').next().filter(|word| is_code(word));
    }
    let name = text.split(',').next()?.rsplit("::").next()?.trim();
    constants.iter().find(|(constant, _)| *constant == name).map(|(_, value)| *value)
}

#[test]
fn every_error_code_is_in_the_table_and_the_other_way_round() {
    let root = repository();
    let mut sources = String::new();
    for folder in ["services", "shared"] {
        for file in all(&root.join(folder), "rs") {
            let shown = file.display().to_string();
            // What tests alone are made of.
            let of_tests = ["testkit", "_tests", "gate_races"].iter().any(|part| shown.contains(part));
            if shown.contains("/src/") && !of_tests {
                let text = std::fs::read_to_string(&file).unwrap();
                sources.push_str(text.split("#[cfg(test)]\nmod tests").next().unwrap());
            }
        }
    }
    let constants: Vec<(&str, &str)> = sources
        .split("const ")
        .filter_map(|rest| {
            let (name, value) = rest.split_once(": &str =")?;
            Some((name, value.trim_start().strip_prefix('"')?.split('"').next()?))
        })
        .filter(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .collect();
    let codes: BTreeSet<&str> = sources
        .split("ApiError::new(")
        .skip(1)
        .filter_map(|rest| word(rest.split_once(',')?.1, &constants))
        .chain(sources.split("code: ").skip(1).filter_map(|rest| word(rest, &[])))
        .collect();
    assert!(codes.len() > 40, "only {} codes were found", codes.len());

    let page = std::fs::read_to_string(root.join("docs/errors.md")).unwrap();
    let cells = page.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
    let told: BTreeSet<&str> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    let untold: Vec<_> = codes.difference(&told).collect();
    assert!(untold.is_empty(), "docs/errors.md lacks {untold:?}");
    let gone: Vec<_> = told
        .iter()
        .filter(|code| {
            // Some are put together from a word and this ending.
            let whole = sources.contains(&format!("\"{code}\""));
            let parts =
                code.strip_suffix("_not_kept").is_some_and(|what| sources.contains(&format!("\"{what}\"")));
            !whole && !parts
        })
        .collect();
    assert!(gone.is_empty(), "docs/errors.md tells of {gone:?}, which nothing says");
}
