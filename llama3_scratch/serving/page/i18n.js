/* All words of the page, in English and Chinese; `{name}` stands for a value. */

import { findAll } from "./dom.js";
import * as settings from "./settings.js";

const WORDS = {
  // The frame
  chat: ["Chat", "对话"],
  studio: ["Storyteller", "故事工坊"],
  engine: ["Engine", "引擎"],
  views: ["Views", "视图"],
  settings: ["Settings", "设置"],
  help: ["Keys and meanings", "按键与说明"],
  close: ["close", "关闭"],
  menu: ["Conversations", "会话列表"],
  skip: ["Skip to the text box", "跳到输入框"],
  wantsKey: ["This server wants an API key: give it in the settings.", "这个服务器需要 API 密钥：请在设置里填写。"],
  failed: ["The server doesn't answer: {why}", "服务器没有应答：{why}"],
  noRoom: ["The browser has no room for more: export the conversations and delete some.", "浏览器没有空间了：请导出会话，然后删掉一些。"],

  // Conversations
  newChat: ["New conversation", "新会话"],
  untitled: ["New conversation", "新会话"],
  rename: ["Rename", "改名"],
  newName: ["Name of the conversation", "会话的名字"],
  delete: ["Delete", "删除"],
  reallyDelete: ["Delete “{name}”?", "删除“{name}”？"],
  exportAll: ["Export all", "全部导出"],
  importAll: ["Import", "导入"],
  imported: ["{conversations} conversations and {stories} stories imported", "导入了 {conversations} 个会话和 {stories} 个故事"],
  notImported: ["This file holds no conversations of this page.", "这个文件里没有本页的会话。"],

  // Chat
  greeting: ["What shall we talk about?", "聊点什么？"],
  greetingText: ["The model is {model}. What you write stays in this browser; the server keeps none of it.", "模型是 {model}。您写的内容只留在这个浏览器里，服务器不保存。"],
  example1: ["Explain in three sentences why the sky is blue.", "用三句话解释天空为什么是蓝的。"],
  example2: ["Write a Python function that counts the words of a text.", "写一个统计文本词数的 Python 函数。"],
  example3: ["Give me a list of five things to pack for a walk in the mountains.", "列出爬山要带的五样东西。"],
  completes: ["This model goes on with a text and doesn't chat: write a beginning.", "这个模型只会续写，不会对话：请写一个开头。"],
  you: ["You", "您"],
  model: ["Model", "模型"],
  write: ["Write a message", "写一条消息"],
  send: ["Send", "发送"],
  stop: ["Stop", "停止"],
  copy: ["copy", "复制"],
  copyCode: ["Copy the code", "复制代码"],
  copyText: ["Copy the message", "复制消息"],
  edit: ["edit", "编辑"],
  editText: ["Edit the message", "编辑消息"],
  save: ["Save", "保存"],
  saveSend: ["Save and answer", "保存并回答"],
  cancel: ["Cancel", "取消"],
  again: ["again", "重答"],
  againText: ["Another answer", "换一个回答"],
  goOn: ["continue", "继续"],
  goOnText: ["Continue this answer", "接着这个回答写"],
  before: ["The version before", "上一个版本"],
  after: ["The version after", "下一个版本"],
  version: ["{at} of {all}", "第 {at} 个，共 {all} 个"],
  answering: ["Answering…", "正在回答……"],
  answered: ["The answer is complete.", "回答完毕。"],
  figures: ["{count} tokens · {speed} tokens/s · first after {first} s", "{count} 个词元 · {speed} 词元/秒 · {first} 秒后开始"],
  cached: ["{n} of the prompt's tokens cached", "提示中 {n} 个词元来自缓存"],
  seed: ["seed {seed}", "种子 {seed}"],
  stopped: ["stopped", "已停止"],
  cut: ["cut short by the limit of tokens", "到了词元上限"],
  left: ["interrupted", "中断了"],
  toBottom: ["To the latest", "到最新处"],

  // Settings
  system: ["System prompt", "系统提示"],
  temperature: ["Temperature", "温度"],
  top_p: ["Top-p", "Top-p"],
  top_k: ["Top-k (0: all)", "Top-k（0：全部）"],
  min_p: ["Min-p", "Min-p"],
  repeat_penalty: ["Repeat penalty", "重复惩罚"],
  max_tokens: ["Most tokens of an answer", "一个回答最多的词元数"],
  seedSetting: ["Seed (empty: another each time)", "种子（空：每次不同）"],
  language: ["Language", "语言"],
  theme: ["Colours", "配色"],
  auto: ["as the system has it", "跟随系统"],
  light: ["light", "浅色"],
  dark: ["dark", "深色"],
  key: ["API key (kept in this browser)", "API 密钥（存在这个浏览器里）"],
  asServed: ["the rest of the context", "上下文剩下的全部"],
  defaults: ["Defaults", "恢复默认"],

  // Look inside
  look: ["Look inside", "看看内部"],
  lookText: ["Colour tokens by their probability; click on one to see why the model said it", "按概率给词元上色；点一个词元，看模型为什么这么说"],
  legend: ["certain", "有把握"],
  legendEnd: ["surprising", "出乎意料"],
  tokenLabel: ["{token}, {share}", "{token}，{share}"],
  tokenOf: ["Token {at} of {all}", "第 {at} 个词元，共 {all} 个"],
  alternatives: ["What else could stand here", "这里还可能是什么"],
  goOnWith: ["Go on from here with {token}", "从这里改用 {token} 继续"],
  others: ["all others", "其他全部"],
  lens: ["Layers", "各层"],
  attention: ["Attention", "注意力"],
  trace: ["Trace", "跟踪"],
  lensText: ["What the model would say next were each layer the last (the logit lens). Outlined: what it said.", "假如每一层都是最后一层，模型接下来会说什么（logit lens）。带框的是它实际说的。"],
  layer: ["layer", "层"],
  head: ["head", "头"],
  allHeads: ["mean of the layer's heads", "这一层各头的平均"],
  saidShare: ["of “{token}”", "“{token}”"],
  attentionText: ["Where the heads look as they choose this token. Choose a head in the grid, or a token to see who looks at it.", "选这个词元时各个头在看哪里。在方格里选一个头，或者点一个词元，看哪些头在看它。"],
  gridLabel: ["layers down, heads across: the weight on “{token}”", "向下是层，向右是头：对“{token}”的权重"],
  gridText: ["All heads: layers down, heads across; the colour is the weight on the chosen token.", "全部的头：向下是层，向右是头；颜色是对所选词元的权重。"],
  headLabel: ["layer {layer}, head {head}: {share} on “{token}”", "第 {layer} 层，第 {head} 头：对“{token}” {share}"],
  firstToken: ["Without the first token, which most heads rest on", "不算第一个词元（多数头停在那里）"],
  traceText: ["Every step of the model's own code for this token: shapes, numbers, heat maps, attention, RoPE, costs. For at most 256 tokens.", "为这个词元运行的每一步代码：形状、数值、热图、注意力、RoPE、开销。最多 256 个词元。"],
  traceMake: ["Trace this position", "跟踪这个位置"],
  traceOpen: ["Open the trace of {n} tokens ({size} MB)", "打开 {n} 个词元的跟踪（{size} MB）"],
  computing: ["Computing…", "正在计算……"],

  // Engine
  engineText: ["All answers run in one batch on one engine. Their keys and values lie in pages of {n} tokens; requests that begin alike share pages.", "所有回答在一个引擎上同批运行。键和值放在每页 {n} 个词元的页里；开头相同的请求共用页。"],
  pagesSum: ["{n} pages: {held} held ({shared} of them shared), {cached} cached, {free} free", "共 {n} 页：使用中 {held}（其中共享 {shared}），缓存 {cached}，空闲 {free}"],
  pagesLegend: ["A square a page, a colour a request; stripes: shared; outlined: cached, ready for whoever begins alike", "一格一页，一色一个请求；条纹：共享；带框：缓存着，留给开头相同的请求"],
  requestName: ["request {n}", "请求 {n}"],
  requestText: ["{prompt} tokens of prompt, {cached} of them from shared pages", "提示 {prompt} 个词元，其中 {cached} 个来自共享页"],
  idle: ["No requests are under way.", "现在没有请求。"],
  pagesOf: ["Pages of the cache", "缓存的页"],
  proof: ["The same seed, alone and in company", "同一个种子，单独与结伴"],
  proofText: ["Asks for one answer alone, then once more among four others. The texts and the probabilities should be equal to the last bit: nobody's answer depends on who else is there.", "先单独要一个回答，再和另外四个一起要一次。文本和概率应当逐位相同：谁的回答都不取决于旁边有谁。"],
  proofRun: ["Try it", "试一试"],
  proofAlone: ["alone", "单独"],
  proofCompany: ["among four others", "和另外四个一起"],
  proofSame: ["The same: {n} tokens and their {p} probabilities, bit by bit", "相同：{n} 个词元和它们的 {p} 个概率，逐位一致"],
  proofNearly: ["The same {n} tokens; {d} of {p} probabilities differ in rounding (float weights, see the server's page)", "{n} 个词元相同；{p} 个概率中有 {d} 个舍入不同（浮点权重，见服务器的说明）"],
  proofOther: ["They differ from token {n} on.", "从第 {n} 个词元开始不同。"],
  proofPrompt: ["Tell me about llamas in the mountains.", "说说山里的羊驼。"],

  // Studio
  studioText: ["Choose who, where and how, and three words that have to come in. Then change any sentence and let the story go on from there.", "选好主角、地点和心情，再给三个必须出现的词。之后可以改任何一句，让故事从那里继续。"],
  hero: ["Hero", "主角"],
  place: ["Place", "地点"],
  mood: ["Mood", "心情"],
  threeWords: ["Three words", "三个词"],
  heroes: ["a small dragon|a girl called Mia|an old lighthouse keeper|a shy robot|a brave mouse", "一条小龙|一个叫米娅的女孩|守灯塔的老人|害羞的机器人|勇敢的老鼠"],
  places: ["a snowy mountain|a library at night|an island of glass|a kitchen|the moon", "雪山|夜里的图书馆|玻璃岛|厨房|月亮"],
  moods: ["cheerful|dreamy|exciting|a little sad|funny", "快乐|梦幻|紧张|有点忧伤|好笑"],
  someWords: ["lantern, bridge, song", "灯笼，桥，歌"],
  tell: ["Tell the story", "讲这个故事"],
  tellThree: ["Three to choose from", "讲三个来选"],
  choose: ["Choose this one", "选这一个"],
  another: ["Another ending from here", "从这里换个结尾"],
  change: ["Change this sentence", "改这一句"],
  changeGoOn: ["Change and go on from here", "改好，从这里继续"],
  dropRest: ["What follows is told anew.", "后面的部分会重新讲。"],
  kept: ["Kept stories", "收藏的故事"],
  noStories: ["None yet.", "还没有。"],
  print: ["Print", "打印"],
  illustrate: ["Illustrate", "配图"],
  storyHint: ["Click on a sentence to change it.", "点一个句子来改它。"],
  pictureOf: ["Picture: {what}", "插图：{what}"],

  // Help
  keyEnter: ["send (on a phone it's a new line)", "发送（手机上是换行）"],
  keyShiftEnter: ["new line", "换行"],
  keyEsc: ["stop the answer, or close what is open", "停止回答，或关掉打开的部分"],
  keyUp: ["in an empty box: edit your last message", "输入框空着时：编辑上一条消息"],
  keySlash: ["to the text box", "到输入框"],
  keyArrows: ["from token to token, from cell to cell", "在词元、方格之间移动"],
  keyNew: ["new conversation", "新会话"],
  meaning: ["Colours show the logarithm of a token's probability. Alternatives are those before sampling; a choice of yours starts a branch beside the answer, and arrows ‹ › lead from one to the other.", "颜色表示词元概率的对数。候选词元是采样之前的；您的选择会在原回答旁边开一个分支，用箭头 ‹ › 切换。"],
};

export const language = () => {
  const chosen = settings.get("language");
  return chosen !== "auto" ? chosen : navigator.language.startsWith("zh") ? "zh" : "en";
};

/** The words for `name` in the chosen language. */
export function t(name, values = {}) {
  const words = WORDS[name][language() === "zh" ? 1 : 0];
  return words.replace(/\{(\w+)\}/g, (_, key) => values[key] ?? "");
}

/** Put words where the page's frame asks for them: data-t is an element's text, data-t-ATTRIBUTE an attribute's. */
export function translate(root = document) {
  document.documentElement.lang = language() === "zh" ? "zh-CN" : "en";
  for (const element of findAll("[data-t]", root)) element.textContent = t(element.dataset.t);
  for (const name of ["aria-label", "placeholder", "title"]) {
    for (const element of findAll(`[data-t-${name}]`, root)) element.setAttribute(name, t(element.getAttribute(`data-t-${name}`)));
  }
}
