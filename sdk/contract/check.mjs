// Checks that both clients' types agree with openapi.json: agreement.ts must compile. Then changes
// each field, value and operation of either side, and checks that each change is detected at its
// place.
import assert from "node:assert/strict";
import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import openapiTS, { astToString } from "openapi-typescript";
import ts from "typescript";

/** Fields of the clients that are aliases of the document's names. */
const ALIASES = ["maxTokens", "ttlSeconds", "userId", "userId"];
/** Fields of the clients that become the keys of events: the events' types, and the field `type`. */
const EVENT_KEYS = ["text", "reasoning", "done", "error", "type"];

process.chdir(fileURLToPath(new URL(".", import.meta.url)));
const AGREEMENT = "agreement.ts";
const DOCUMENT = "build/openapi.d.ts";
const MANAGEMENT = "../typescript/dist/esm";
const SESSIONS = "../sessions/dist/esm";
const RESOURCES = readdirSync(`${MANAGEMENT}/resources`).filter((name) => name.endsWith(".d.ts")).map((name) => `${MANAGEMENT}/resources/${name}`);

mkdirSync("build", { recursive: true });
writeFileSync(DOCUMENT, astToString(await openapiTS(new URL("../../openapi.json", import.meta.url))));

const { options } = ts.parseJsonConfigFileContent(ts.readConfigFile("tsconfig.json", ts.sys.readFile).config, ts.sys, ".");
const host = ts.createCompilerHost(options, true);
const { getSourceFile } = host;
const sources = new Map();

/**
 * Compiles agreement.ts with `edits` to its imports. Passing an `earlier` program makes it faster.
 */
function compile(edits, earlier) {
  const texts = new Map();
  for (const { file, from, to, by } of [...edits].sort((a, b) => b.from - a.from)) {
    const text = texts.get(file.fileName) ?? file.text;
    texts.set(file.fileName, text.slice(0, from) + by + text.slice(to));
  }
  const changed = new Map([...texts].map(([name, text]) => [name, ts.createSourceFile(name, text, options.target, true)]));
  host.getSourceFile = (name, ...rest) => {
    if (!sources.has(name)) sources.set(name, getSourceFile(name, ...rest));
    return changed.get(name) ?? sources.get(name);
  };
  return ts.createProgram([AGREEMENT], options, host, earlier);
}

function typeNamed(program, file, name) {
  const declaration = program.getSourceFile(file).statements.find((each) => each.name?.text === name);
  return program.getTypeChecker().getTypeAtLocation(declaration.name);
}

/** Returns the places where the sides disagree. */
function disagreements(program) {
  const type = typeNamed(program, AGREEMENT, "Disagreements");
  const places = type.isUnion() ? type.types : type.flags & ts.TypeFlags.Never ? [] : [type];
  return new Set(places.map((place) => place.value ?? program.getTypeChecker().typeToString(place).slice(1, -1)));
}

const whole = compile([]);
const faults = whole.getSemanticDiagnostics(whole.getSourceFile(AGREEMENT)).map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, "\n"));
const disagreeing = [...faults, ...[...disagreements(whole)].sort()];
if (disagreeing.length > 0) throw new Error(`the clients' types and openapi.json disagree:\n${disagreeing.join("\n")}`);

// The sides agree. The rest checks that a change is detected.

const checker = whole.getTypeChecker();
const clientSide = typeNamed(whole, AGREEMENT, "ClientSide");
const operations = new Set(clientSide.getProperties().map(({ name }) => name));

/** Returns the type of an array's items. */
const itemOf = (type) => (checker.isArrayLikeType(type) ? checker.getTypeArguments(type)[0] : undefined);

/**
 * Calls `visit` with every property in `type`, its place, its type and that type's depth. Returns
 * the depth of `type`.
 */
function walk(type, place, visit) {
  const own = checker.getNonNullableType(type);
  if (!(own.flags & (ts.TypeFlags.Object | ts.TypeFlags.Intersection))) return 0;
  const item = itemOf(own);
  if (item) return walk(item, `${place}[]`, visit);
  const depths = [0];
  const values = own.getStringIndexType();
  if (values) depths.push(walk(values, `${place}.\${string}`, visit));
  for (const property of own.getProperties()) {
    const at = `${place}.${property.name}`;
    const within = checker.getTypeOfSymbol(property);
    const depth = walk(within, at, visit);
    for (const declaration of property.declarations ?? []) visit(declaration, at, within, depth);
    depths.push(depth);
  }
  return 1 + Math.max(...depths);
}

/**
 * The fields of `side` that `files` declare: all places of each, those of its values where they are
 * texts to choose from, and how deep it goes.
 */
function fieldsOf(side, files) {
  const fields = new Map();
  for (const operation of side.getProperties().filter(({ name }) => operations.has(name))) {
    walk(checker.getTypeOfSymbol(operation), operation.name, (declaration, place, type, depth) => {
      if (!files.includes(declaration.getSourceFile())) return;
      const field = fields.get(declaration) ?? { declaration, places: [], valuePlaces: [], depth: 0 };
      fields.set(declaration, field);
      field.places.push(place);
      field.depth = Math.max(field.depth, depth);
      const own = checker.getNonNullableType(type);
      const value = itemOf(own) ?? own;
      if (value.isUnion() && value.types.every((each) => each.isStringLiteral())) field.valuePlaces.push(itemOf(own) ? `${place}[]` : place);
    });
  }
  return [...fields.values()];
}

function nodesIn(files, is) {
  const found = [];
  const visit = (node) => {
    if (is(node)) found.push(node);
    ts.forEachChild(node, visit);
  };
  files.forEach(visit);
  return found;
}

const edit = (node, by) => ({ file: node.getSourceFile(), from: node.getStart(), to: node.getEnd(), by });
const isNull = (type) => ts.isLiteralTypeNode(type) && type.literal.kind === ts.SyntaxKind.NullKeyword;
const isText = (type) => ts.isLiteralTypeNode(type) && ts.isStringLiteral(type.literal);
const without = (union, left) => union.types.filter((type) => type !== left).map((type) => type.getText()).join(" | ");

/** Changes to a field. `unknown` includes null, so it has no change of nullability. */
const rename = ({ name }) => edit(name, `"renamed ${name.text}"`);
const changesOfFields = {
  renamed: rename,
  dropped: (field) => edit(field, ""),
  "with nullability changed": ({ type }) => {
    if (type.kind === ts.SyntaxKind.UnknownKeyword) return undefined;
    const nullMember = ts.isUnionTypeNode(type) && type.types.find(isNull);
    return edit(type, nullMember ? without(type, nullMember) : `(${type.getText()}) | null`);
  },
  "with optionality changed": ({ name, questionToken }) => (questionToken ? edit(questionToken, "") : edit(name, `${name.getText()}?`)),
};

/**
 * Changes to a union of strings, and to an object whose keys are such a union. `event` is the type of
 * event that a stream then has too much or lacks.
 */
const changesOfValues = {
  "with a value added": {
    event: "added",
    ofUnion: (union) => edit(union, `${union.getText()} | "added"`),
    ofKeys: ([first]) => edit(first, `added: never; ${first.getText()}`),
  },
  "with a value removed": {
    event: EVENT_KEYS[0],
    ofUnion: (union) => edit(union, without(union, union.types.find(isText))),
    ofKeys: ([first]) => edit(first, ""),
  },
};

let tried = 0;
const undetected = [];

/**
 * Applies `edits` together; none may overlap another. Each of `expected`, a text and its places,
 * must be detected: in all its places, or in one of them.
 */
function attempt(change, edits, expected, inAll = true) {
  assert.ok(expected.length > 0, change);
  const shown = disagreements(compile(edits, whole));
  for (const [text, places] of expected) {
    const missing = places.filter((place) => !shown.has(place));
    if (missing.length > 0 && (inAll || missing.length === places.length)) undetected.push(`${text} ${change}: ${missing.join(", ")}`);
  }
  tried += expected.length;
}

const documentFiles = [whole.getSourceFile(DOCUMENT)];
const clientFiles = [...RESOURCES, `${SESSIONS}/params.d.ts`, `${SESSIONS}/types.d.ts`].map((file) => whole.getSourceFile(file));
const documented = typeNamed(whole, DOCUMENT, "operations");
const documentSide = typeNamed(whole, AGREEMENT, "DocumentSide");
const membersOf = (file, name) => whole.getSourceFile(file).statements.find((each) => each.name?.text === name).members;
const eventKeys = [membersOf(`${MANAGEMENT}/events.d.ts`, "KartaEventData"), membersOf(`${SESSIONS}/types.d.ts`, "TurnEventData")];
const sides = [
  { name: "document", files: documentFiles, fields: fieldsOf(documentSide, documentFiles), keyed: [], inAll: true },
  // A type of the client may derive from another and override the changed field.
  { name: "client", files: clientFiles, fields: fieldsOf(clientSide, clientFiles), keyed: eventKeys, inAll: false },
];

for (const { name, files, fields, keyed, inAll } of sides) {
  for (const [change, editOf] of Object.entries(changesOfFields)) {
    // Fields of the same depth do not contain each other.
    for (const depth of new Set(fields.map((field) => field.depth))) {
      const edited = fields.filter((field) => field.depth === depth).map((field) => ({ ...field, edit: editOf(field.declaration) }));
      const alike = edited.filter((field) => field.edit !== undefined);
      attempt(`${change} (${name})`, alike.map((field) => field.edit), alike.map(({ declaration, places }) => [declaration.getText(), places]), inAll);
    }
  }
  const unions = nodesIn(files, (node) => ts.isUnionTypeNode(node) && node.types.some(isText));
  const choices = fields.filter(({ valuePlaces }) => valuePlaces.length > 0).map(({ declaration, valuePlaces }) => [declaration.getText(), valuePlaces]);
  const streams = new Set(fields.flatMap(({ places }) => places).filter((place) => place.includes(".events.")).map((place) => place.split(".events.")[0]));
  for (const [change, { event, ofUnion, ofKeys }] of Object.entries(changesOfValues)) {
    const events = ["types of events", [...streams].map((stream) => `${stream}.events.${event}`)];
    attempt(`${change} (${name})`, [...unions.map(ofUnion), ...keyed.map(ofKeys)], [...choices, events], inAll);
  }
}

const compared = new Set(sides.flatMap(({ fields }) => fields.map(({ declaration }) => declaration)));
const declaring = clientFiles.flatMap(({ statements }) => statements.filter((each) => !ts.isFunctionDeclaration(each)));
const left = nodesIn(declaring, (node) => ts.isPropertySignature(node) && !compared.has(node)).map(({ name }) => name.text);
assert.deepEqual(left.sort(), [...ALIASES, ...EVENT_KEYS].sort(), "fields of the clients that are not compared");

const lines = documented.getProperties().map(({ valueDeclaration }) => valueDeclaration);
attempt("renamed", lines.map(rename), lines.map(({ name }) => [name.text, [name.text, `renamed ${name.text}`]]));
const isKey = (node) => ts.isPropertySignature(node) && node.name.text === "Idempotency-Key";
const idempotent = lines.filter((line) => operations.has(line.name.text) && nodesIn([line], isKey).length > 0);
attempt("without Idempotency-Key", nodesIn(idempotent, isKey).map(rename), idempotent.map(({ name }) => [name.text, [`${name.text}.idempotent`]]));

if (undetected.length > 0) throw new Error(`undetected changes:\n${undetected.join("\n")}`);
console.log(`contract: ${operations.size} operations agree with openapi.json; all ${tried} changes are detected`);
