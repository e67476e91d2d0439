//! Several nodes on virtual time, with a medium that can lose messages.

use proptest::prelude::*;

use super::*;

/// Nodes and what they have done.
struct Net {
    nodes: Vec<Node>,
    up: Vec<bool>,
    now: Millis,
    done: Vec<(usize, Action)>,
    requests: u64,
}

impl Net {
    fn new(count: usize) -> Self {
        let uid = |i: usize| format!("{i:016x}");
        let node = |i| Node::with_heartbeats(&uid(i), "/", ClusterOptions::default());
        let nodes = (0..count).map(node).collect();
        let mut net = Self { nodes, up: vec![true; count], now: 1000, done: Vec::new(), requests: 0 };
        for i in 0..count {
            net.nodes[i].start(net.now);
            net.settle();
        }
        net
    }

    fn counted(count: usize) -> Self {
        let mut net = Self::new(0);
        let uid = |i: usize| format!("{i:016x}");
        net.nodes = (0..count).map(|i| Node::counted(&uid(i), "/", ClusterOptions::default())).collect();
        net.up = vec![true; count];
        net
    }

    fn request(&mut self) -> Request {
        self.requests += 1;
        Request {
            id: format!("request {}", self.requests),
            ticket: self.requests,
            others: self.nodes.len() - 1,
        }
    }

    /// Carries messages until there are none; what else is to be done is kept.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let Some((from, action)) =
                (0..self.nodes.len()).find_map(|i| Some((i, self.nodes[i].poll_action()?)))
            else {
                return;
            };
            // A message travels in the reference's form.
            let carried = |message: &Message| -> Message {
                serde_json::from_str(&serde_json::to_string(message).unwrap()).unwrap()
            };
            match &action {
                Action::Publish(message) if self.up[from] => {
                    for to in (0..self.nodes.len()).filter(|to| self.up[*to]) {
                        self.nodes[to].handle_message(self.now, carried(message));
                    }
                }
                Action::Respond(uid, message) if self.up[from] => {
                    let to = self.nodes.iter().position(|node| node.uid() == uid).unwrap();
                    if self.up[to] {
                        self.nodes[to].handle_message(self.now, carried(message));
                    }
                }
                Action::Publish(_) | Action::Respond(..) => {}
                _ => self.done.push((from, action)),
            }
        }
        panic!("messages without end");
    }

    /// Time passes, deadline by deadline.
    fn pass(&mut self, ms: Millis) {
        let end = self.now + ms;
        for _ in 0..10_000 {
            self.settle();
            let next = self.nodes.iter().zip(&self.up).filter(|(_, up)| **up);
            let next = next.filter_map(|(node, _)| node.poll_timeout()).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            for i in 0..self.nodes.len() {
                if self.up[i] {
                    self.nodes[i].handle_timeout(self.now);
                }
            }
        }
        panic!("deadlines without end");
    }

    fn take(&mut self) -> Vec<(usize, Action)> {
        std::mem::take(&mut self.done)
    }
}

fn socket(id: &str) -> SocketDetails {
    SocketDetails { id: id.into(), ..SocketDetails::default() }
}

fn text(text: &str) -> Value {
    Value::from(text)
}

#[test]
fn nodes_know_each_other_and_notice_who_falls_silent() {
    let mut net = Net::new(3);
    assert!(net.nodes.iter().all(|node| node.others() == 2));
    net.pass(60_000);
    assert!(net.nodes.iter().all(|node| node.others() == 2), "heartbeats keep them");
    net.up[2] = false;
    net.pass(9_000);
    assert_eq!(net.nodes[0].others(), 2, "not yet");
    net.pass(6_100);
    assert_eq!((net.nodes[0].others(), net.nodes[1].others()), (1, 1));
    let now = net.now;
    net.nodes[1].close(now);
    net.settle();
    assert_eq!(net.nodes[0].others(), 0, "it has said good-bye");
    assert_eq!(net.nodes[1].poll_timeout(), None);
}

#[test]
fn broadcasts_joins_and_disconnections_reach_the_others_once() {
    let mut net = Net::new(3);
    let options = BroadcastOptions { rooms: vec!["r".into()], volatile: true, ..BroadcastOptions::default() };
    let now = net.now;
    net.nodes[0].broadcast(now, vec![text("hello"), Value::from(1)], &options);
    net.nodes[0].add_sockets(now, &options, vec!["a".into()]);
    net.nodes[0].del_sockets(now, &options, vec!["b".into()]);
    net.nodes[0].disconnect_sockets(now, &options, true);
    net.nodes[0].server_side_emit(now, vec![text("event")], None);
    net.settle();
    let local = BroadcastOptions { local: true, ..options };
    let expected = [
        Action::Broadcast(vec![text("hello"), Value::from(1)], local.clone()),
        Action::Join(local.clone(), vec!["a".into()]),
        Action::Leave(local.clone(), vec!["b".into()]),
        Action::Disconnect(local, true),
        Action::Event(None, vec![text("event")]),
    ];
    let done = net.take();
    for node in [1, 2] {
        let of: Vec<Action> = done.iter().filter(|(i, _)| *i == node).map(|(_, a)| a.clone()).collect();
        assert_eq!(of, expected);
    }
    assert_eq!(done.len(), 10, "nothing comes back to the sender");
}

#[test]
fn sockets_of_all_servers_are_gathered() {
    for mut net in [Net::new(3), Net::counted(3)] {
        let (now, request) = (net.now, net.request());
        net.nodes[0].fetch_sockets(now, request, &BroadcastOptions::default());
        net.settle();
        for (node, action) in net.take() {
            let Action::Fetch(asker, _) = action else { panic!("{action:?}") };
            net.nodes[node].tell_sockets(&asker, vec![socket(&format!("s{node}"))]);
            // A medium may deliver twice.
            net.nodes[node].tell_sockets(&asker, vec![socket("twice")]);
        }
        net.settle();
        assert_eq!(net.take(), [(0, Action::Fetched(1, Ok(vec![socket("s1"), socket("s2")])))]);
        assert!(!net.nodes[0].is_waiting());
    }
}

#[test]
fn a_server_that_does_not_answer_is_told_of_with_what_came() {
    for (mut net, why) in [
        (Net::new(3), "timeout reached: missing 1 responses"),
        (Net::counted(3), "timeout reached: only 1 responses received out of 2"),
    ] {
        let (now, request) = (net.now, net.request());
        net.nodes[0].server_side_emit(now, vec![text("sum?")], Some(request));
        net.settle();
        let done = net.take();
        assert_eq!(done.len(), 2);
        let (1, Action::Event(Some(asker), args)) = &done[0] else { panic!("{done:?}") };
        assert_eq!(*args, [text("sum?")]);
        net.nodes[1].tell_answer(asker, Value::from(7));
        net.pass(4_999);
        assert_eq!(net.take(), []);
        net.pass(1);
        let error = ClusterError { message: why.into(), responses: vec![Value::from(7)] };
        assert_eq!(net.take(), [(0, Action::Answered(1, Err(error)))]);
    }
}

#[test]
fn a_server_that_goes_is_waited_for_no_longer() {
    let mut net = Net::new(3);
    let (now, request, ask) = (net.now, net.request(), net.request());
    net.nodes[0].fetch_sockets(now, request, &BroadcastOptions::default());
    let options = BroadcastOptions::default();
    assert_eq!(net.nodes[0].broadcast_with_ack(now, ask, vec![text("vote")], &options), 2);
    net.settle();
    for (node, action) in net.take() {
        if let (1, Action::Fetch(asker, _)) = (node, &action) {
            net.nodes[1].tell_sockets(asker, vec![socket("s1")]);
        }
        if let (1, Action::Ask(asker, ..)) = (node, &action) {
            net.nodes[1].tell_clients(asker, 2);
            net.nodes[1].tell_ack(asker, Value::from("yes"));
        }
    }
    net.settle();
    assert_eq!(net.take(), [(0, Action::Clients(2, 2)), (0, Action::Ack(2, Value::from("yes")))]);
    net.nodes[2].close(now);
    net.settle();
    let fetched = Action::Fetched(1, Ok(vec![socket("s1")]));
    let mut done = net.take();
    done.sort_by_key(|(_, action)| matches!(action, Action::Clients(..)));
    assert_eq!(done, [(0, fetched), (0, Action::Clients(2, 0))]);
    net.pass(5_000);
    assert_eq!(net.take(), [(0, Action::Forget(2))]);
    assert!(!net.nodes[0].is_waiting());
}

#[test]
fn a_server_that_is_alone_waits_for_nobody() {
    let mut net = Net::new(1);
    let (now, fetch, emit, ask) = (net.now, net.request(), net.request(), net.request());
    net.nodes[0].fetch_sockets(now, fetch, &BroadcastOptions::default());
    net.nodes[0].server_side_emit(now, vec![text("x")], Some(emit));
    assert_eq!(net.nodes[0].broadcast_with_ack(now, ask, vec![text("x")], &BroadcastOptions::default()), 0);
    net.settle();
    let ended = [Action::Fetched(1, Ok(vec![])), Action::Answered(2, Ok(vec![])), Action::Forget(3)];
    assert_eq!(net.take().into_iter().map(|(_, action)| action).collect::<Vec<_>>(), ended);
}

#[test]
fn emitters_are_no_servers_and_strangers_are_bounded() {
    let mut net = Net::new(1);
    let message = |uid: &str, nsp: &str| Message { uid: uid.into(), nsp: nsp.into(), body: Body::Heartbeat };
    net.nodes[0].handle_message(0, message(EMITTER, "/"));
    net.nodes[0].handle_message(0, message("other", "/other"));
    assert_eq!(net.nodes[0].others(), 0);
    for i in 0..2 * NODES_MAX {
        net.nodes[0].handle_message(0, message(&i.to_string(), "/"));
    }
    assert_eq!(net.nodes[0].others(), NODES_MAX);
    for i in 0..=REQUESTS_MAX {
        let request = Request { id: i.to_string(), ticket: i as u64, others: 0 };
        net.nodes[0].server_side_emit(0, vec![text("x")], Some(request));
        while let Some(action) = net.nodes[0].poll_action() {
            if let Action::Answered(ticket, result) = action {
                assert_eq!(ticket, REQUESTS_MAX as u64);
                assert_eq!(result.unwrap_err().message, "too many requests await answers");
            }
        }
    }
    assert_eq!(net.nodes[0].pending.len(), REQUESTS_MAX);
}

#[test]
fn a_broadcast_whose_answers_have_all_come_is_forgotten() {
    for mut net in [Net::new(3), Net::counted(3)] {
        let (now, ask) = (net.now, net.request());
        let options = BroadcastOptions { timeout: Some(Duration::MAX), ..BroadcastOptions::default() };
        assert_eq!(net.nodes[0].broadcast_with_ack(now, ask, vec![text("vote")], &options), 2);
        net.settle();
        for (node, action) in net.take() {
            let Action::Ask(asker, ..) = action else { panic!("{action:?}") };
            // The second has an answer before it has counted.
            if node == 2 {
                net.nodes[2].tell_ack(&asker, text("early"));
            }
            net.nodes[node].tell_clients(&asker, 1);
            if node == 1 {
                net.nodes[1].tell_ack(&asker, text("late"));
            }
        }
        net.settle();
        let done: Vec<Action> = net.take().into_iter().map(|(_, action)| action).collect();
        assert_eq!(done.len(), 5, "{done:?}");
        assert_eq!(done.last(), Some(&Action::Forget(1)));
        assert!(!net.nodes[0].is_waiting(), "a long timeout costs nothing");
    }
}

#[test]
fn an_answer_counts_only_from_who_was_asked_and_as_what_it_answers() {
    for mut net in [Net::new(2), Net::counted(2)] {
        let (now, ask, fetch) = (net.now, net.request(), net.request());
        let options = BroadcastOptions::default();
        assert_eq!(net.nodes[0].broadcast_with_ack(now, ask.clone(), vec![text("vote")], &options), 1);
        net.nodes[0].fetch_sockets(now, fetch.clone(), &options);
        net.settle();
        net.take();
        let asker =
            |request: &Request| Asker { uid: net.nodes[0].uid().to_owned(), request_id: request.id.clone() };
        let (ask, fetch) = (asker(&ask), asker(&fetch));
        // The answers to one question are none to the other.
        net.nodes[1].tell_sockets(&ask, vec![socket("s")]);
        net.nodes[1].tell_answer(&ask, Value::Null);
        net.nodes[1].tell_clients(&fetch, 7);
        net.nodes[1].tell_ack(&fetch, Value::Null);
        net.nodes[1].tell_clients(&ask, 2);
        // A medium may deliver twice.
        net.nodes[1].tell_clients(&ask, 2);
        net.nodes[1].tell_ack(&ask, text("a"));
        net.settle();
        assert_eq!(net.take(), [(0, Action::Clients(1, 2)), (0, Action::Ack(1, text("a")))]);
        // A server that has come since, or that has answered all it was to, answers for nobody else.
        let stranger = |node: &mut Node, body| {
            let message = Message { uid: "a stranger".into(), nsp: "/".into(), body };
            node.handle_message(now, message);
        };
        let answer = Answer { request_id: ask.request_id.clone(), packet: text("stranger") };
        stranger(&mut net.nodes[0], Body::BroadcastAck(answer));
        let count = ClientCount { request_id: ask.request_id.clone(), client_count: u64::MAX };
        stranger(&mut net.nodes[0], Body::BroadcastClientCount(count));
        net.settle();
        assert_eq!(net.take(), []);
        net.nodes[1].tell_ack(&ask, text("b"));
        net.nodes[1].tell_ack(&ask, text("one too many"));
        net.nodes[1].tell_sockets(&fetch, vec![socket("s")]);
        net.settle();
        let expected = [
            (0, Action::Ack(1, text("b"))),
            (0, Action::Forget(1)),
            (0, Action::Fetched(2, Ok(vec![socket("s")]))),
        ];
        assert_eq!(net.take(), expected);
    }
}

#[test]
fn who_has_gone_is_asked_and_heard_no_more() {
    let mut net = Net::new(2);
    let now = net.now;
    net.nodes[1].close(now);
    net.settle();
    assert_eq!(net.nodes[0].others(), 0);
    // What it had begun to do ends after it.
    let asker = Asker { uid: net.nodes[0].uid().to_owned(), request_id: "q".into() };
    net.nodes[1].tell_clients(&asker, 3);
    net.nodes[1].broadcast(now, vec![text("last words")], &BroadcastOptions::default());
    net.nodes[0].start(now);
    net.settle();
    let local = BroadcastOptions { local: true, ..BroadcastOptions::default() };
    assert_eq!(net.take(), [(0, Action::Broadcast(vec![text("last words")], local))]);
    assert_eq!(net.nodes[0].others(), 0, "it must not be waited for");
    assert_eq!(net.nodes[1].poll_timeout(), None);
    // What is asked of it ends at once: nobody passes time on any more.
    let (fetch, emit, ask) = (net.request(), net.request(), net.request());
    net.nodes[1].fetch_sockets(now, fetch, &BroadcastOptions::default());
    net.nodes[1].server_side_emit(now, vec![text("x")], Some(emit));
    assert_eq!(net.nodes[1].broadcast_with_ack(now, ask, vec![text("x")], &BroadcastOptions::default()), 0);
    let ended: Vec<Action> = std::iter::from_fn(|| net.nodes[1].poll_action()).collect();
    assert!(matches!(
        ended[..],
        [Action::Fetched(1, Err(_)), Action::Answered(2, Err(_)), Action::Forget(3)]
    ));
}

#[test]
fn a_broadcast_too_many_is_noticed() {
    let mut net = Net::new(2);
    for i in 0..REQUESTS_MAX {
        let request = Request { id: i.to_string(), ticket: i as u64, others: 0 };
        net.nodes[0].server_side_emit(0, vec![text("x")], Some(request));
    }
    while net.nodes[0].poll_action().is_some() {}
    let request = Request { id: "ask".into(), ticket: 7, others: 0 };
    let servers = net.nodes[0].broadcast_with_ack(0, request, vec![text("x")], &BroadcastOptions::default());
    assert_eq!(servers, 1, "one counts as asked, and stays silent");
    assert_eq!(net.nodes[0].poll_action(), Some(Action::Forget(7)));
    assert_eq!(net.nodes[0].poll_action(), None, "it is not sent");
}

#[test]
fn a_timeout_may_be_for_ever_and_a_namespace_may_be_left_out() {
    let options = ClusterOptions {
        heartbeat_interval: Duration::MAX,
        heartbeat_timeout: Duration::MAX,
        requests_timeout: Duration::MAX,
    };
    let mut node = Node::with_heartbeats("a", "/", options);
    node.start(1000);
    node.handle_message(1000, Message { uid: "b".into(), nsp: String::new(), body: Body::Heartbeat });
    assert_eq!(node.others(), 1);
    let request = Request { id: "q".into(), ticket: 1, others: 0 };
    node.fetch_sockets(1000, request, &BroadcastOptions::default());
    node.handle_timeout(Millis::MAX - 1);
    assert!(node.is_waiting() && node.others() == 1);
}

#[derive(Clone, Debug)]
enum Step {
    Fetch(usize),
    Emit(usize),
    Ask(usize),
    Answer,
    Cut(usize),
    Close(usize),
    Pass(Millis),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4usize).prop_map(Step::Fetch),
        (0..4usize).prop_map(Step::Emit),
        (0..4usize).prop_map(Step::Ask),
        Just(Step::Answer),
        (0..4usize).prop_map(Step::Cut),
        (0..4usize).prop_map(Step::Close),
        (0..20_000u64).prop_map(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 128 }))]

    /// Whatever happens, every request ends, and ends once.
    #[test]
    fn every_request_ends_once(steps in prop::collection::vec(step(), 1..40)) {
        let mut net = Net::new(4);
        let mut asked = Vec::new();
        let mut ended = Vec::new();
        let mut open: Vec<(usize, Action)> = Vec::new();
        for step in steps {
            let (now, request) = (net.now, net.request());
            match step {
                Step::Fetch(i) => {
                    asked.push(request.ticket);
                    net.nodes[i].fetch_sockets(now, request, &BroadcastOptions::default());
                }
                Step::Emit(i) => {
                    asked.push(request.ticket);
                    net.nodes[i].server_side_emit(now, vec![text("x")], Some(request));
                }
                Step::Ask(i) => {
                    asked.push(request.ticket);
                    let options = BroadcastOptions::default();
                    net.nodes[i].broadcast_with_ack(now, request, vec![text("x")], &options);
                }
                Step::Answer => {
                    for (i, action) in open.drain(..) {
                        match action {
                            Action::Fetch(asker, _) => net.nodes[i].tell_sockets(&asker, vec![]),
                            Action::Event(Some(asker), _) => net.nodes[i].tell_answer(&asker, Value::Null),
                            Action::Ask(asker, ..) => net.nodes[i].tell_clients(&asker, 0),
                            _ => {}
                        }
                    }
                }
                Step::Cut(i) => net.up[i] = false,
                Step::Close(i) => net.nodes[i].close(now),
                Step::Pass(ms) => net.pass(ms),
            }
            net.settle();
            for (i, action) in net.take() {
                match action {
                    Action::Fetched(ticket, _) | Action::Answered(ticket, _) | Action::Forget(ticket) => {
                        ended.push(ticket);
                    }
                    other => open.push((i, other)),
                }
            }
        }
        net.up = vec![true; 4];
        net.pass(30_000);
        for (_, action) in net.take() {
            match action {
                Action::Fetched(ticket, _) | Action::Answered(ticket, _) | Action::Forget(ticket) => {
                    ended.push(ticket);
                }
                _ => {}
            }
        }
        ended.sort_unstable();
        prop_assert_eq!(ended, asked);
    }
}
