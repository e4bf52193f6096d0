//! How far one spelling is from another: for "did you mean".

/// Letters to insert, delete, replace or swap with their neighbour to get from `a` to `b`, without
/// regard to case. Only the first 64 letters of each count.
pub fn distance(a: &str, b: &str) -> usize {
    let letters = |text: &str| -> Vec<char> { text.chars().take(64).flat_map(char::to_lowercase).collect() };
    let (a, b) = (letters(a), letters(b));
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(from != to)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *from == b[j - 1] && a[i - 1] == *to {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// The candidate that `text` was probably meant to be: at most a third of its letters differ.
pub fn nearest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let length = text.chars().take(64).count();
    candidates
        .map(|candidate| (distance(text, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(length) / 3).clamp(1, 4))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_letter_missing_added_wrong_or_swapped_is_one_step() {
        for (text, meant) in
            [("iad", "iad"), ("ID", "id"), ("lrh", "lhr"), ("intrnal", "internal"), ("envv", "env")]
        {
            assert!(distance(text, meant) <= 1, "{text} {meant}");
        }
        assert_eq!(distance("abc", "xyz"), 3);
        assert_eq!(nearest("internal_prot", ["ports", "internal_port"].into_iter()), Some("internal_port"));
        assert_eq!(nearest("zzzzzz", ["ports", "internal_port"].into_iter()), None);
    }

    proptest! {
        #[test]
        fn it_is_zero_for_the_same_and_the_same_both_ways(a in "[a-d]{0,8}", b in "[a-d]{0,8}") {
            prop_assert_eq!(distance(&a, &a), 0);
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert!(distance(&a, &b) <= a.len().max(b.len()));
        }
    }
}
