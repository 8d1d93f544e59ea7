// Markdown to elements. Text only ever becomes text nodes, so whatever a model writes cannot become a tag.

const FENCE = /^(\s{0,3})(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^\s{0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^\s{0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+)(.*)$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

/** Renders a text. `codeHead(language, code)` makes the line above a block of code. */
export function render(text, codeHead) {
  const root = document.createDocumentFragment();
  blocks(text.replace(/\r\n?/g, "\n").split("\n"), root, codeHead);
  return root;
}

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** Renders lines as blocks into `into`. */
function blocks(lines, into, codeHead) {
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    if (!line.trim()) {
      at += 1;
    } else if (FENCE.test(line)) {
      at = fence(lines, at, into, codeHead);
    } else if (HEADING.test(line)) {
      const [, marks, title] = HEADING.exec(line);
      into.append(element(`h${Math.min(marks.length, 4)}`, "", inline(title)));
      at += 1;
    } else if (RULE.test(line)) {
      into.append(element("hr"));
      at += 1;
    } else if (/^\s{0,3}>/.test(line)) {
      const end = endOf(lines, at, (next) => /^\s{0,3}>/.test(next));
      const quote = element("blockquote");
      blocks(lines.slice(at, end).map((next) => next.replace(/^\s{0,3}> ?/, "")), quote, codeHead);
      into.append(quote);
      at = end;
    } else if (ITEM.test(line)) {
      at = list(lines, at, into, codeHead);
    } else if (line.includes("|") && TABLE_RULE.test(lines[at + 1] ?? "") && lines[at + 1].includes("-")) {
      at = table(lines, at, into);
    } else {
      const end = endOf(lines, at, (next, index) => next.trim() && (index === at || !startsBlock(next)));
      into.append(element("p", "", inline(lines.slice(at, end).join("\n"))));
      at = end;
    }
  }
}

function endOf(lines, from, belongs) {
  let end = from;
  while (end < lines.length && belongs(lines[end], end)) end += 1;
  return end;
}

function startsBlock(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || /^\s{0,3}>/.test(line) || ITEM.test(line);
}

/** A fenced block; one that is not closed yet reaches to the end, as while it streams. */
function fence(lines, at, into, codeHead) {
  const [, indent, marks, language] = FENCE.exec(lines[at]);
  const closing = new RegExp(`^\\s{0,3}${marks[0]}{${marks.length},}\\s*$`);
  const end = endOf(lines, at + 1, (line) => !closing.test(line));
  const code = lines.slice(at + 1, end).map((line) => (line.startsWith(indent) ? line.slice(indent.length) : line)).join("\n");
  into.append(element("div", "code", codeHead(language, code), element("pre", "", element("code", "", code))));
  return end + 1;
}

function list(lines, at, into, codeHead) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const made = element(ordered ? "ol" : "ul");
  if (ordered && parseInt(mark, 10) !== 1) made.start = parseInt(mark, 10);
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || item[1].length !== indent.length || /\d/.test(item[2]) !== ordered || RULE.test(lines[at])) break;
    const depth = indent.length + 1;
    const own = (line, index) => index === at || (!line.trim() ? belongsAfterGap(lines, index, depth) : depth < leading(line) + 1 && (leading(line) >= depth || !ITEM.test(line)));
    const end = endOf(lines, at, own);
    const width = item[1].length + item[2].length + Math.min(item[3].length, 4);
    const inner = [item[4], ...lines.slice(at + 1, end).map((line) => line.slice(Math.min(leading(line), width)))];
    const entry = element("li");
    blocks(inner, entry, codeHead);
    // A tight item is text, not a paragraph.
    if (entry.firstChild?.nodeName === "P") entry.firstChild.replaceWith(...entry.firstChild.childNodes);
    made.append(entry);
    at = end;
    while (at < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1] ?? "")) at += 1;
  }
  into.append(made);
  return at;
}

function leading(line) {
  return line.length - line.trimStart().length;
}

function belongsAfterGap(lines, index, depth) {
  const next = lines.slice(index).find((line) => line.trim());
  return next !== undefined && depth <= leading(next);
}

function table(lines, at, into) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
  const aligned = cells(lines[at + 1]).map((rule) => (/^:-+:$/.test(rule) ? "center" : /-:$/.test(rule) ? "right" : ""));
  const end = endOf(lines, at + 2, (line) => line.trim() && line.includes("|"));
  const row = (line, name) => element("tr", "", ...cells(line).slice(0, aligned.length).map((cell, column) => element(name, aligned[column], inline(cell))));
  const head = element("thead", "", row(lines[at], "th"));
  const body = element("tbody", "", ...lines.slice(at + 2, end).map((line) => row(line, "td")));
  into.append(element("div", "table", element("table", "", head, body)));
  return end;
}

// Tried in this order at each place; the first that matches there wins.
const INLINE = new RegExp([
  String.raw`\\(?<escaped>[\\\`*_{}\[\]()#+.!|~<>-])`,
  String.raw`(?<ticks>\`+)(?<code>[\s\S]*?[^\`])\k<ticks>(?!\`)`,
  String.raw`\*\*(?<strong>(?=\S)[\s\S]*?\S)\*\*`,
  String.raw`(?<!\w)__(?<strong2>(?=\S)[\s\S]*?\S)__(?!\w)`,
  String.raw`\*(?<em>(?=[^\s*])(?:[^*]*?[^\s*])?)\*(?!\*)`,
  String.raw`(?<!\w)_(?<em2>(?=[^\s_])(?:[^_]*?[^\s_])?)_(?!\w)`,
  String.raw`~~(?<gone>(?=\S)[\s\S]*?\S)~~`,
  String.raw`!?\[(?<label>[^\]\n]*)\]\((?<target>[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?:\s+"[^"]*")?\)`,
  String.raw`(?<bare>https?:\/\/[^\s<>()\[\]"'，。）]+[^\s<>()\[\]"'，。）.,;:!?])`,
  String.raw`(?<br> {2,}\n)`,
].join("|"), "g");

/** Renders the marks inside a line. */
function inline(text) {
  const made = document.createDocumentFragment();
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    made.append(text.slice(at, match.index), marked(match.groups, match[0]));
    at = match.index + match[0].length;
  }
  made.append(text.slice(at));
  return made;
}

function marked(groups, whole) {
  const strong = groups.strong ?? groups.strong2;
  const emphasised = groups.em ?? groups.em2;
  if (groups.escaped !== undefined) return groups.escaped;
  if (groups.code !== undefined) return element("code", "", groups.code.replace(/^ (.*\S.*) $/s, "$1"));
  if (strong !== undefined) return element("strong", "", inline(strong));
  if (emphasised) return element("em", "", inline(emphasised));
  if (groups.gone !== undefined) return element("del", "", inline(groups.gone));
  if (groups.target !== undefined) return link(groups.target, inline(groups.label || groups.target));
  if (groups.bare !== undefined) return link(groups.bare, groups.bare);
  if (groups.br !== undefined) return element("br");
  return whole;
}

/** A link, if it leads to a page or a mailbox; its label alone otherwise (`javascript:` above all). */
function link(target, label) {
  if (!/^(https?:\/\/|mailto:)/i.test(target)) return element("span", "", label);
  const made = element("a", "", label);
  made.href = target;
  made.target = "_blank";
  made.rel = "noopener noreferrer";
  return made;
}
