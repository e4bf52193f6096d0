use super::*;
use http_body_util::BodyExt;
use proptest::prelude::*;

/// A client's body as a list of chunks, all there at once.
#[derive(Debug)]
struct Chunks(VecDeque<Bytes>);

impl Body for Chunks {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(self.0.pop_front().map(|chunk| Ok(Frame::data(chunk))))
    }
}

fn body(chunks: &[usize], limit: usize, budget: &Arc<Budget>) -> (KeptBody<Chunks>, Vec<u8>) {
    let mut next = 0u8;
    let chunks: VecDeque<Bytes> = chunks
        .iter()
        .map(|length| {
            let chunk: Vec<u8> = (0..*length)
                .map(|_| {
                    next = next.wrapping_add(1);
                    next
                })
                .collect();
            chunk.into()
        })
        .collect();
    let whole = chunks.iter().flatten().copied().collect();
    (KeptBody::new(Chunks(chunks), limit, Arc::clone(budget)), whole)
}

async fn read(reader: KeptReader<Chunks>) -> Result<Vec<u8>, BodyError> {
    Ok(reader.collect().await?.to_bytes().to_vec())
}

#[tokio::test]
async fn a_kept_body_is_read_again_and_an_older_reader_gets_nothing_more() {
    let budget = Arc::new(Budget::new(100));
    let (kept, whole) = body(&[3, 4, 5], 50, &budget);
    let mut first = kept.reader();
    assert!(first.frame().await.unwrap().is_ok());
    let second = kept.reader();
    assert_eq!(first.frame().await.unwrap().unwrap_err(), BodyError::Superseded);
    assert_eq!(read(second).await.unwrap(), whole);
    assert_eq!(read(kept.reader()).await.unwrap(), whole);
    assert_eq!(budget.left(), 88);
    drop(kept);
    assert_eq!(budget.left(), 88, "a reader still holds it");
    drop(first);
    assert_eq!(budget.left(), 100);
}

#[tokio::test]
async fn before_admission_nothing_goes_out_that_is_not_kept() {
    let budget = Arc::new(Budget::new(100));
    let (kept, whole) = body(&[4, 4, 4], 8, &budget);
    let mut first = kept.reader();
    assert!(first.frame().await.unwrap().is_ok() && first.frame().await.unwrap().is_ok());
    let blocked = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut first).poll_frame(cx).is_pending()));
    assert!(blocked.await, "the third chunk is over the limit");
    assert!(kept.is_replayable(), "a refusal loses nothing");
    let second = kept.reader();
    kept.admit();
    assert_eq!(read(second).await.unwrap(), whole);
    assert!(!kept.is_replayable());
    assert_eq!(budget.left(), 100, "what can't be replayed is not kept");
}

#[tokio::test]
async fn a_settled_body_lets_go_of_what_was_sent_and_sends_the_rest() {
    let budget = Arc::new(Budget::new(100));
    let (kept, whole) = body(&[4, 4, 4], 50, &budget);
    drop(read(kept.reader()).await.unwrap());
    let mut again = kept.reader();
    kept.admit();
    let first = again.frame().await.unwrap().unwrap().into_data().unwrap();
    kept.settle();
    assert_eq!(budget.left(), 92);
    let rest = read(again).await.unwrap();
    assert_eq!([first.as_ref(), &rest].concat(), whole);
    assert_eq!(budget.left(), 100);
}

proptest! {
    /// SPEC RPL-5: at the limit all is kept; beyond it nothing is, and it is told.
    #[test]
    fn rpl_5_a_body_is_complete_exactly_up_to_its_limit(
        chunks in proptest::collection::vec(1usize..20, 0..12), limit in 0usize..120, first in 0usize..12,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let budget = Arc::new(Budget::new(1_000));
            let (kept, whole) = body(&chunks, limit, &budget);
            let mut reader = kept.reader();
            let mut sent = 0;
            // Some of it is sent before the instruction comes, never beyond what is kept.
            for chunk in chunks.iter().take(first) {
                if sent + chunk > limit { break; }
                sent += chunk;
                assert!(reader.frame().await.unwrap().is_ok());
            }
            let complete = kept.complete().await;
            if whole.len() <= limit {
                assert_eq!(complete, Ok(()));
                assert_eq!(read(kept.reader()).await.unwrap(), whole);
                assert_eq!(budget.left(), 1_000 - whole.len());
            } else {
                assert_eq!(complete, Err(NotKept::Limit));
            }
            drop((kept, reader));
            assert_eq!(budget.left(), 1_000);
        });
    }
}
