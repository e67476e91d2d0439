// uWebSockets' publish and subscribe under the contract of the load tests, with as little Socket.IO framing as that
// takes. Not a Socket.IO server: no sessions, namespaces, sids of one's own or limits. Liveness is by WebSocket
// pings, the library's own way; no Engine.IO pings are sent.
#include <charconv>
#include <cstdio>
#include <cstring>
#include <csignal>
#include <string>
#include <string_view>

#include "App.h"

namespace {

struct PerSocket {};

using Socket = uWS::WebSocket<false, true, PerSocket>;

constexpr std::string_view OPEN =
    "0{\"sid\":\"uws\",\"upgrades\":[],\"pingInterval\":3600000,\"pingTimeout\":20000,\"maxPayload\":1000000}";

/// Takes `"text"` from the start and returns the text; what follows stays.
std::string_view quoted(std::string_view &rest) {
    if (rest.empty() || rest.front() != '"') return {};
    size_t end = rest.find('"', 1);
    if (end == std::string_view::npos) return {};
    std::string_view text = rest.substr(1, end - 1);
    rest.remove_prefix(end + 1);
    return text;
}

void event(uWS::App &app, Socket *ws, std::string_view packet) {
    size_t digits = 0;
    while (digits < packet.size() && packet[digits] >= '0' && packet[digits] <= '9') digits++;
    std::string_view ack = packet.substr(0, digits);
    std::string_view rest = packet.substr(digits);
    if (rest.size() < 2 || rest.front() != '[' || rest.back() != ']') return;
    rest = rest.substr(1, rest.size() - 2);
    std::string_view name = quoted(rest);
    if (!rest.empty()) rest.remove_prefix(1);
    std::string answer;
    if (name == "publish") {
        std::string_view room = quoted(rest);
        if (!rest.empty()) rest.remove_prefix(1);
        std::string out = "42[\"message\",";
        out.append(rest).append("]");
        app.publish(room, out, uWS::OpCode::TEXT, false);
    } else if (name == "join") {
        ws->subscribe(quoted(rest));
    } else if (name == "leave") {
        ws->unsubscribe(quoted(rest));
    } else if (name == "echo") {
        answer = rest;
    }
    if (!ack.empty()) {
        std::string out = "43";
        out.append(ack).append("[").append(answer).append("]");
        ws->send(out, uWS::OpCode::TEXT, false);
    }
}

void message(uWS::App &app, Socket *ws, std::string_view packet) {
    if (packet.starts_with("42")) {
        event(app, ws, packet.substr(2));
    } else if (packet.starts_with("40")) {
        ws->send("40{\"sid\":\"uws\"}", uWS::OpCode::TEXT, false);
    } else if (packet.starts_with("2")) {
        ws->send("3", uWS::OpCode::TEXT, false);
    }
}

}  // namespace

int main(int count, char **words) {
    int port = 3001;
    for (int i = 1; i + 1 < count; i++) {
        std::string_view value = words[i + 1];
        if (!strcmp(words[i], "--port")) std::from_chars(value.data(), value.data() + value.size(), port);
    }
    signal(SIGTERM, [](int) { _exit(0); });
    uWS::App app;
    app.ws<PerSocket>("/socket.io/*", {
        .compression = uWS::DISABLED,
        .maxPayloadLength = 16 << 20,
        .idleTimeout = 120,
        .maxBackpressure = 64 << 20,
        .open = [](auto *ws) { ws->send(OPEN, uWS::OpCode::TEXT, false); },
        .message = [&app](auto *ws, std::string_view packet, uWS::OpCode) { message(app, ws, packet); },
    });
    app.listen("127.0.0.1", port, [port](auto *listening) {
        if (!listening) exit(1);
        std::printf("listening on 127.0.0.1:%d\n", port);
        std::fflush(stdout);
    });
    app.run();
}
