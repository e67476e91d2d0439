// The chat page. One Socket.IO socket, the events of the contract in ../README.md, and the DOM; nothing else.
// Everything that came from another person goes through textContent, never through innerHTML.
"use strict";

const ACK_TIMEOUT_MS = 10_000;
const TYPING_IDLE_MS = 2_000; // we say "stopped" after this much silence
const TYPING_EXPIRY_MS = 6_000; // and forget others who never said it
const GROUP_GAP_MS = 5 * 60_000; // messages of one person closer than this share a name
const MESSAGES_MAX = 500; // older ones leave the page
const LOGIN_RETRIES_MAX = 12; // after a drop the old connection may hold our name until its ping timeout
const LOGIN_RETRY_MS = 4_000;

const $ = (id) => document.getElementById(id);
const ui = Object.fromEntries(
  ["welcome", "login", "username", "enter", "login-error", "chat", "rooms", "new-room", "room-name", "room", "log",
    "empty", "messages", "newer", "typing", "compose", "message", "send", "notice", "people", "online", "count",
    "state", "transport", "leave"].map((id) => [id, $(id)]),
);

/** What must survive a dropped connection: who we want to be, and where. */
const me = { name: null, room: "general", inside: false, retries: 0 };
let rooms = ["general", "random"];
let usersVersion; // of the list of people on the page
let lastMessage = null; // the newest {from, at}, for grouping
let fromHistory = new Set(); // keys of the history just shown, so that no message is shown twice
const typists = new Map(); // name -> timer that forgets it

// ---------------------------------------------------------------------------------------------- connection

const socket = connect();

function connect() {
  if (typeof io === "undefined") {
    showState("offline");
    ui["login-error"].textContent = "The server has no client bundle: /socket.io/socket.io.js is missing.";
    return null;
  }
  // "?transports=polling" or "?transports=websocket" in the address pins the transport, to watch each at work.
  const wish = new URLSearchParams(location.search).get("transports");
  const transports = (wish || "").split(",").filter((name) => name === "polling" || name === "websocket");
  return io(transports.length > 0 ? { transports } : {});
}

if (socket) {
  socket.on("connect", () => {
    showState("connected");
    showTransport();
    // A fresh engine belongs to every connection, so its events are subscribed to each time.
    socket.io.engine.on("upgrade", showTransport);
    me.retries = 0;
    if (me.name) logIn();
  });
  socket.on("disconnect", (reason) => {
    showState(socket.active ? "reconnecting" : "offline");
    forgetTypists();
    refreshComposer();
    // The client does not come back by itself when the server closed the socket on purpose.
    if (reason === "io server disconnect") setTimeout(() => socket.connect(), 1_000);
  });
  socket.on("connect_error", () => showState("reconnecting"));

  socket.on("message", (message) => {
    if (fromHistory.has(keyOf(message))) return;
    addMessage(message);
    forgetTypist(message.from);
  });
  socket.on("user-joined", ({ username, users, version }) => {
    refreshUsers(users, version);
    addNotice(`${username} joined`);
  });
  socket.on("user-left", ({ username, users, version }) => {
    refreshUsers(users, version);
    forgetTypist(username);
    addNotice(`${username} left`);
  });
  socket.on("typing", ({ username, typing }) => (typing ? rememberTypist(username) : forgetTypist(username)));
}

/**
 * Emits with an acknowledgement; a refusal and a silence both come back as {ok: false, error}. `onReply` runs before
 * the next event does: what comes after an `await` may run later than events that the server has sent behind the reply.
 */
function ask(event, arg, onReply = (reply) => reply) {
  return new Promise((resolve) => {
    socket.timeout(ACK_TIMEOUT_MS).emit(event, arg, (lost, reply) => {
      resolve(onReply(lost ? { ok: false, error: "The server did not answer.", lost: true } : reply));
    });
  });
}

function showState(state) {
  ui.state.textContent = state;
  document.documentElement.dataset.state = state;
  if (state !== "connected") ui.transport.textContent = "";
}

function showTransport() {
  ui.transport.textContent = socket.io.engine.transport.name;
}

// --------------------------------------------------------------------------------------------------- login

ui.login.addEventListener("submit", (event) => {
  event.preventDefault();
  const name = ui.username.value.trim();
  const problem = nameProblem(name, "A name");
  if (problem || !socket) return showLogin(problem || ui["login-error"].textContent);
  me.name = name;
  me.room = "general";
  ui.enter.disabled = true;
  ui["login-error"].textContent = "";
  // Not connected yet: the "connect" handler logs in as soon as it is.
  if (socket.connected) logIn();
});

ui.leave.addEventListener("click", () => {
  socket.disconnect();
  showLogin("");
  socket.connect();
});

/** Logs in as `me.name` and goes to `me.room`; runs after the form and again after every reconnection. */
function logIn() {
  const { id } = socket;
  return ask("login", me.name, (reply) => enter(id, reply));
}

function enter(id, reply) {
  if (socket.id !== id || !me.name) return; // that connection is gone, its successor logs in by itself
  if (!reply.ok) {
    if (me.inside && me.retries++ < LOGIN_RETRIES_MAX) {
      showState("reconnecting");
      complain("Back on the line. The server still holds your name for the connection that was lost.");
      setTimeout(() => socket.id === id && me.name && logIn(), LOGIN_RETRY_MS);
      return;
    }
    showLogin(reply.error || "The server refused this name.");
    return;
  }
  const wanted = me.room;
  const first = !me.inside;
  me.inside = true;
  showState("connected");
  showTransport();
  ui.enter.disabled = false;
  ui.welcome.hidden = true;
  ui.chat.hidden = false;
  ui.leave.hidden = false;
  showRoom(reply);
  const settled = wanted === reply.room ? Promise.resolve() : switchRoom(wanted);
  if (first) settled.then(focusMessage);
}

function showLogin(error) {
  me.name = null;
  me.inside = false;
  ui.enter.disabled = false;
  ui.chat.hidden = true;
  ui.leave.hidden = true;
  ui.welcome.hidden = false;
  ui["login-error"].textContent = error;
  ui.username.setAttribute("aria-invalid", String(error !== ""));
  ui.username.focus();
}

/** The same rule for names of people and rooms; the server has the last word. */
function nameProblem(name, what) {
  const length = [...name].length;
  return length < 1 || length > 24 ? `${what} has 1 to 24 characters.` : "";
}

// --------------------------------------------------------------------------------------------------- rooms

ui.rooms.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-room]");
  if (button && button.dataset.room !== me.room) switchRoom(button.dataset.room).then(focusMessage);
});

ui["new-room"].addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = ui["room-name"].value.trim();
  const problem = nameProblem(name, "A room's name");
  if (problem) return complain(problem);
  if (name !== me.room && !(await switchRoom(name))) return;
  ui["room-name"].value = "";
  focusMessage();
});

async function switchRoom(room) {
  if (!socket.connected) return complain("Not connected: rooms can be changed once the connection is back.");
  stopTyping();
  return ask("switch-room", room, (reply) => {
    if (!reply.ok) return complain(reply.error || "The server refused this room.");
    showRoom(reply);
    return true;
  });
}

/** Shows the room that a login or a switch has led to. */
function showRoom({ room, users, version, history }) {
  me.room = room;
  if (!rooms.includes(room)) rooms = [...rooms, room];
  ui.room.textContent = room;
  complain("");
  forgetTypists();
  ui.rooms.replaceChildren(...rooms.map(roomButton));
  ui.rooms.querySelector("[aria-current]").scrollIntoView({ block: "nearest", inline: "nearest" });

  // What was said before is not read out as if it were being said now.
  ui.log.setAttribute("aria-busy", "true");
  ui.messages.replaceChildren();
  lastMessage = null;
  fromHistory = new Set(history.map(keyOf));
  history.forEach(addMessage);
  ui.log.setAttribute("aria-busy", "false");
  scrollToNewest();
  showUsers(users, version);
  refreshComposer();
}

function roomButton(room) {
  const button = element("button", "", room);
  button.type = "button";
  button.dataset.room = room;
  if (room === me.room) button.setAttribute("aria-current", "true");
  return button;
}

/** Shows a list that came with a notice, unless a newer one came before it. A server may do without versions. */
function refreshUsers(users, version) {
  if (!(version < usersVersion)) showUsers(users, version);
}

function showUsers(users, version) {
  usersVersion = version;
  ui.count.textContent = String(users.length);
  const sorted = [...users].sort((a, b) => a.localeCompare(b));
  ui.online.replaceChildren(...sorted.map((name) => paint(element("li", name === me.name ? "me" : "", name), name)));
}

// ------------------------------------------------------------------------------------------------ messages

ui.compose.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = ui.message.value.trim();
  if (text === "") return;
  if (!ready()) return complain("Not connected: your message waits here until the connection is back.");
  ui.message.value = "";
  stopTyping();
  complain("");
  const reply = await ask("message", text);
  if (reply.ok) return;
  complain(`Not sent. ${reply.error || ""}`);
  if (ui.message.value === "") ui.message.value = text;
});

function addMessage({ from, text, at }) {
  const item = element("li", from === me.name ? "message mine" : "message");
  const sameVoice = lastMessage && lastMessage.from === from && at - lastMessage.at < GROUP_GAP_MS;
  if (sameVoice) item.classList.add("more");
  const time = element("time", "", clock(at));
  time.dateTime = new Date(at).toISOString();
  item.append(element("span", "from", from), time, element("span", "text", text));
  item.dataset.initial = [...from][0].toUpperCase();
  lastMessage = { from, at };
  append(paint(item, from));
}

function addNotice(text) {
  lastMessage = null;
  append(element("li", "notice", text));
}

function append(item) {
  const following = nearNewest();
  ui.messages.append(item);
  if (ui.messages.childElementCount > MESSAGES_MAX) ui.messages.firstElementChild.remove();
  if (following) scrollToNewest();
  else ui.newer.hidden = false;
}

const nearNewest = () => ui.log.scrollHeight - ui.log.scrollTop - ui.log.clientHeight < 80;

function scrollToNewest() {
  ui.log.scrollTop = ui.log.scrollHeight;
  ui.newer.hidden = true;
}

ui.newer.addEventListener("click", scrollToNewest);
ui.log.addEventListener("scroll", () => nearNewest() && (ui.newer.hidden = true), { passive: true });
// A keyboard that opens on a phone shrinks the log: the newest message stays in sight.
new ResizeObserver(() => ui.newer.hidden && scrollToNewest()).observe(ui.log);

const ready = () => me.inside && socket.connected;
const keyOf = ({ from, text, at }) => JSON.stringify([from, text, at]);
const clock = (at) => new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

function refreshComposer() {
  // Not `disabled`: the Enter key would then do nothing at all, and nobody would be told why.
  ui.send.setAttribute("aria-disabled", String(!ready()));
}

function complain(text) {
  ui.notice.textContent = text;
  return false;
}

function focusMessage() {
  // On a touch screen the focus would throw the keyboard over the room.
  if (matchMedia("(pointer: fine)").matches) ui.message.focus();
}

// -------------------------------------------------------------------------------------------------- typing

let typingTimer = null; // set while the others believe that we type

ui.message.addEventListener("input", () => {
  if (ui.message.value.trim() === "") return stopTyping();
  if (!ready()) return;
  if (typingTimer === null) socket.emit("typing", true);
  clearTimeout(typingTimer);
  typingTimer = setTimeout(stopTyping, TYPING_IDLE_MS);
});

function stopTyping() {
  if (typingTimer === null) return;
  clearTimeout(typingTimer);
  typingTimer = null;
  if (ready()) socket.emit("typing", false);
}

function rememberTypist(name) {
  clearTimeout(typists.get(name));
  typists.set(name, setTimeout(() => forgetTypist(name), TYPING_EXPIRY_MS));
  showTypists();
}

function forgetTypist(name) {
  clearTimeout(typists.get(name));
  if (typists.delete(name)) showTypists();
}

function forgetTypists() {
  typists.forEach((timer) => clearTimeout(timer));
  typists.clear();
  showTypists();
}

function showTypists() {
  const [first, second, ...more] = typists.keys();
  if (first === undefined) ui.typing.textContent = "";
  else if (second === undefined) ui.typing.textContent = `${first} is typing…`;
  else if (more.length === 0) ui.typing.textContent = `${first} and ${second} are typing…`;
  else ui.typing.textContent = `${first}, ${second} and ${more.length} more are typing…`;
}

// ------------------------------------------------------------------------------------------------- elements

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

/** Gives a person a colour that is the same on every page. */
function paint(node, name) {
  let hash = 0;
  for (const char of name) hash = Math.imul(hash ^ char.codePointAt(0), 0x9e3779b1) >>> 0;
  node.style.setProperty("--hue", (hash >>> 8) % 360);
  return node;
}

// On a narrow screen the list of people starts folded away.
ui.people.open = !matchMedia("(max-width: 720px)").matches;
