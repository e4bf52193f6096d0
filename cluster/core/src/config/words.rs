//! A command line as words, split as flyctl splits it (`google/shlex`).

/// A quote or backslash of a command line has no end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the command ends inside {0}; close it, or write a backslash before it")]
pub struct UnbalancedWords(pub &'static str);

/// Splits a command line into words: spaces separate, single quotes keep everything, double quotes
/// keep all but backslash escapes, a backslash keeps the next character, `#` at the beginning of a
/// word starts a comment. Nothing is expanded.
///
/// # Errors
/// [`UnbalancedWords`] when a quote or a trailing backslash has no end; whoever wrote it caused it.
pub fn split_words(line: &str) -> Result<Vec<String>, UnbalancedWords> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\r' | '\n' => words.extend(word.take()),
            '#' if word.is_none() => {
                chars.by_ref().find(|c| *c == '\n');
            }
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err(UnbalancedWords("single quotes")),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => word.push(chars.next().ok_or(UnbalancedWords("double quotes"))?),
                        Some(c) => word.push(c),
                        None => return Err(UnbalancedWords("double quotes")),
                    }
                }
            }
            '\\' => {
                let escaped = chars.next().ok_or(UnbalancedWords("a backslash escape"))?;
                word.get_or_insert_default().push(escaped);
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(line: &str) -> Vec<String> {
        split_words(line).unwrap()
    }

    #[test]
    fn command_lines_split_as_flyctl_splits_them() {
        assert_eq!(words("node server.js"), ["node", "server.js"]);
        assert_eq!(words(r#"sh -c "echo 'a b' \"c\"""#), ["sh", "-c", r#"echo 'a b' "c""#]);
        assert_eq!(words(r"a\ b 'c\d' ''"), ["a b", r"c\d", ""]);
        assert_eq!(words("run # a comment\n--now a#b"), ["run", "--now", "a#b"]);
        assert!(words(" \t\n").is_empty());
    }

    #[test]
    fn an_open_quote_is_refused_by_name() {
        for (line, name) in
            [("a 'b", "single quotes"), ("a \"b", "double quotes"), ("a\\", "a backslash escape")]
        {
            assert_eq!(split_words(line), Err(UnbalancedWords(name)), "{line}");
        }
    }

    proptest! {
        #[test]
        fn words_in_single_quotes_come_back_whole(list in prop::collection::vec("[^']{0,20}", 0..6)) {
            let line: Vec<String> = list.iter().map(|word| format!("'{word}'")).collect();
            prop_assert_eq!(split_words(&line.join(" ")).unwrap(), list);
        }

        #[test]
        fn no_line_makes_it_panic(line in ".{0,80}") {
            // The property is that it returns at all, and never more text than it was given.
            if let Ok(words) = split_words(&line) {
                prop_assert!(words.iter().map(String::len).sum::<usize>() <= line.len());
            }
        }
    }
}
