// Logging in: with a key or with email and password. Either becomes a cookie that no script can read.

import { ask } from "./api.js";
import { h, put } from "./dom.js";
import { title } from "./parts.js";

export function loginView(reason, done) {
  const trouble = h("p", { class: "trouble", role: "alert" }, reason);
  const send = (read) => async (event) => {
    event.preventDefault();
    const form = event.target;
    const button = form.querySelector("button");
    button.disabled = true;
    put(trouble, "");
    try {
      await ask("/sessions", { method: "POST", body: read(new FormData(form)) });
      form.reset();
      await done();
    } catch (error) {
      put(trouble, `Not logged in: ${error.message}.`);
      form.querySelector("input").focus();
    } finally {
      button.disabled = false;
    }
  };
  const withKey = h(
    "form",
    { onsubmit: send((data) => ({ key: data.get("key") })), "aria-label": "Log in with a key" },
    field("API key or admin key", { name: "key", type: "password", autocomplete: "off", required: true }),
    h("button", { type: "submit" }, "Log in with the key"),
    h(
      "p",
      { class: "hint" },
      "fleetpulse up keeps its admin key in .fleetpulse/fleetpulse.json and prints a line with it.",
    ),
  );
  const withPassword = h(
    "form",
    {
      onsubmit: send((data) => ({ email: data.get("email"), password: data.get("password") })),
      "aria-label": "Log in with a password",
    },
    field("Email", { name: "email", type: "email", autocomplete: "username", required: true }),
    field("Password", { name: "password", type: "password", autocomplete: "current-password", required: true }),
    h("button", { type: "submit" }, "Log in"),
  );
  return h(
    "div",
    { class: "login" },
    title("Log in"),
    trouble,
    h("div", { class: "panel" }, withKey),
    h("p", { class: "or", "aria-hidden": "true" }, "or"),
    h("div", { class: "panel" }, withPassword),
  );
}

function field(label, attributes) {
  const id = `login-${attributes.name}`;
  return h("p", { class: "field" }, h("label", { for: id }, label), h("input", { id, ...attributes }));
}
