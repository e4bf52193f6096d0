use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store.redb")).unwrap();
    (dir, store)
}

#[tokio::test]
async fn rows_are_found_again_after_the_file_is_reopened() {
    let (dir, store) = store();
    store.put("machines", "b", &2u32).await.unwrap();
    store.put("machines", "a", &1u32).await.unwrap();
    store.put("machines", "a", &3u32).await.unwrap();
    drop(store);
    let store = Store::open(&dir.path().join("store.redb")).unwrap();
    assert_eq!(store.get::<u32>("machines", "a").await.unwrap(), Some(3));
    let listing = store.list::<u32>("machines").await.unwrap();
    assert_eq!(listing.rows, [("a".to_owned(), 3), ("b".to_owned(), 2)]);
    assert_eq!(listing.bad, []);
}

#[tokio::test]
async fn what_was_never_written_or_was_deleted_is_not_there() {
    let (_dir, store) = store();
    assert_eq!(store.get::<u32>("machines", "a").await.unwrap(), None);
    assert_eq!(store.list::<u32>("machines").await.unwrap().rows, []);
    assert!(!store.delete("machines", "a").await.unwrap());
    store.put("machines", "a", &1u32).await.unwrap();
    assert_eq!(store.get::<u32>("other", "a").await.unwrap(), None, "tables are apart");
    assert!(store.delete("machines", "a").await.unwrap());
    assert_eq!(store.get::<u32>("machines", "a").await.unwrap(), None);
}

#[tokio::test]
async fn a_bad_row_is_named_and_skipped_and_stays() {
    let (_dir, store) = store();
    store.put("machines", "good", &7u32).await.unwrap();
    store.put_bytes("machines", "future", &[9, 1]).unwrap();
    store.put_bytes("machines", "empty", &[]).unwrap();
    let listing = store.list::<u32>("machines").await.unwrap();
    assert_eq!(listing.rows, [("good".to_owned(), 7)]);
    assert_eq!(
        listing.bad,
        [
            BadRow { key: "empty".into(), error: CodecError::Empty },
            BadRow { key: "future".into(), error: CodecError::Version(9) },
        ]
    );
    let error = store.get::<u32>("machines", "future").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "row \"future\" of table \"machines\": format version 9 is not known here; this build reads version 1"
    );
    assert_eq!(store.get_bytes("machines", "future").unwrap(), Some(vec![9, 1]));
}

#[test]
fn a_file_that_is_in_use_is_refused_with_its_path() {
    let (dir, store) = store();
    let path = dir.path().join("store.redb");
    let error = Store::open(&path).unwrap_err();
    assert!(error.to_string().contains("store.redb"), "{error}");
    drop(store);
    Store::open(&path).unwrap();
}
