# SPDX-License-Identifier: MIT
"""The alignment experiments of w2s.py, end to end.

    python tasks.py                  the default run
    python tasks.py --help           what else there is

A task is data (questions with the keys of their answers), a gold style, a check of content and a check of style. One
loop, `experiment`, runs every method on it. Only the `teach` split has gold answers, `train` is questions only, `test`
is touched by nothing but the final scores.
"""
from __future__ import annotations

import random
import re

# Facts: kind -> question, statement, and pairs "a=key|other form that counts". A key is near unique within its kind.
FACTS = {
    "capital": ("What is the capital of {a}?", "The capital of {a} is {b}.", """
        France=Paris; Germany=Berlin; Spain=Madrid; Portugal=Lisbon; Italy=Rome; Greece=Athens; Austria=Vienna; Hungary=Budapest;
        Poland=Warsaw; Sweden=Stockholm; Norway=Oslo; Finland=Helsinki; Denmark=Copenhagen; Ireland=Dublin; Russia=Moscow;
        Ukraine=Kyiv|Kiev; Romania=Bucharest; Bulgaria=Sofia; Serbia=Belgrade; Croatia=Zagreb; Belgium=Brussels; Turkey=Ankara;
        Egypt=Cairo; Kenya=Nairobi; Ghana=Accra; Ethiopia=Addis Ababa; Morocco=Rabat; Cuba=Havana; Canada=Ottawa; Peru=Lima;
        Argentina=Buenos Aires; Chile=Santiago; Venezuela=Caracas; Japan=Tokyo; China=Beijing; South Korea=Seoul; Thailand=Bangkok;
        Vietnam=Hanoi; India=New Delhi|Delhi; Iran=Tehran; Iraq=Baghdad; Australia=Canberra; the Netherlands=Amsterdam;
        the United Kingdom=London; Iceland=Reykjavik; Nepal=Kathmandu; Syria=Damascus; Lebanon=Beirut; Jamaica=Kingston"""),
    "opposite": ("What is the opposite of {a}?", "The opposite of {a} is {b}.", """
        hot=cold; big=small|little; happy=sad|unhappy; fast=slow; young=old; rich=poor; light=dark|heavy; day=night; up=down; left=right;
        early=late; strong=weak; hard=soft|easy; full=empty; wet=dry; clean=dirty; loud=quiet|silent|soft; high=low; long=short;
        wide=narrow; thick=thin; love=hate|hatred; win=lose; begin=end|finish; buy=sell; open=closed|close|shut; push=pull; true=false;
        alive=dead; first=last; inside=outside; north=south; east=west; summer=winter; war=peace; success=failure;
        brave=cowardly|afraid|fearful|timid; cheap=expensive|costly; sweet=sour|bitter; deep=shallow; smooth=rough; sharp=dull|blunt;
        arrive=leave|depart; remember=forget; accept=reject|refuse; increase=decrease; expand=contract|shrink; ancient=modern; innocent=guilty;
        absent=present; maximum=minimum; positive=negative; optimist=pessimist"""),
    "past": ("What is the past tense of the verb {a}?", "The past tense of the verb {a} is {b}.", """
        go=went; eat=ate; see=saw; take=took; give=gave; run=ran; write=wrote; speak=spoke; break=broke; choose=chose; drive=drove;
        fly=flew; grow=grew; know=knew; throw=threw; draw=drew; swim=swam; sing=sang; drink=drank; begin=began; ring=rang;
        buy=bought; bring=brought; think=thought; teach=taught; catch=caught; fight=fought; sleep=slept; keep=kept; feel=felt;
        leave=left; lose=lost; find=found; stand=stood; tell=told; sell=sold; make=made; hear=heard; hold=held; build=built;
        spend=spent; send=sent; come=came; become=became; fall=fell; forget=forgot; wear=wore; steal=stole; freeze=froze; wake=woke"""),
    "plural": ("What is the plural of {a}?", "The plural of {a} is {b}.", """
        child=children; mouse=mice; goose=geese; tooth=teeth; foot=feet; man=men; woman=women; ox=oxen; person=people|persons;
        leaf=leaves; knife=knives; wife=wives; life=lives; wolf=wolves; shelf=shelves; loaf=loaves; half=halves; thief=thieves;
        calf=calves; city=cities; baby=babies; story=stories; country=countries; cherry=cherries; butterfly=butterflies; party=parties;
        box=boxes; church=churches; potato=potatoes; tomato=tomatoes; hero=heroes; cactus=cacti|cactuses; analysis=analyses; crisis=crises"""),
    "young": ("What is a young {a} called?", "A young {a} is called a {b}.", """
        dog=puppy|pup; cat=kitten; cow=calf; horse=foal|colt|filly; sheep=lamb; goat=kid; pig=piglet; duck=duckling;
        goose=gosling; swan=cygnet; lion=cub; deer=fawn; kangaroo=joey; frog=tadpole|froglet; eagle=eaglet; owl=owlet; hare=leveret"""),
    "element": ("Which chemical element has the symbol {a}?", "The chemical element with the symbol {a} is {b}.", """
        H=hydrogen; He=helium; Li=lithium; C=carbon; N=nitrogen; O=oxygen; F=fluorine; Ne=neon; Na=sodium; Mg=magnesium; Al=aluminum|aluminium;
        Si=silicon; P=phosphorus; S=sulfur|sulphur; Cl=chlorine; Ar=argon; K=potassium; Ca=calcium; Ti=titanium; Cr=chromium; Mn=manganese;
        Fe=iron; Co=cobalt; Ni=nickel; Cu=copper; Zn=zinc; As=arsenic; Br=bromine; Ag=silver; Sn=tin; I=iodine; Pt=platinum; Hg=mercury;
        Pb=lead; U=uranium; Pu=plutonium; Ra=radium; W=tungsten; Xe=xenon; Kr=krypton"""),
    "currency": ("What is the currency of {a}?", "The currency of {a} is the {b}.", """
        Japan=yen; India=rupee|rupees; the United Kingdom=pound|pounds|sterling; Russia=ruble|rubles|rouble; China=yuan|renminbi; South Korea=won;
        Brazil=real|reais; South Africa=rand; Turkey=lira; Poland=zloty|złoty; Sweden=krona|kronor; Thailand=baht; Vietnam=dong; Israel=shekel|shekels;
        Hungary=forint; Nigeria=naira; Mexico=peso|pesos; Switzerland=franc|francs; Germany=euro|euros; the United States=dollar|dollars;
        Kenya=shilling|shillings; Ukraine=hryvnia; Saudi Arabia=riyal|riyals; Malaysia=ringgit; Bangladesh=taka; Peru=sol|soles"""),
    "language": ("Which language do most people speak in {a}?", "The language that most people speak in {a} is {b}.", """
        Brazil=Portuguese; Mexico=Spanish; Austria=German; Egypt=Arabic; Israel=Hebrew; Iran=Persian|Farsi; the Netherlands=Dutch; Greece=Greek;
        Sweden=Swedish; Poland=Polish; Turkey=Turkish; Hungary=Hungarian; Japan=Japanese; Russia=Russian; Denmark=Danish; Norway=Norwegian;
        Italy=Italian; France=French; South Korea=Korean; Bangladesh=Bengali; the United States=English"""),
    "author": ("Who wrote {a}?", "{a} was written by {b}.", """
        Hamlet=Shakespeare; Pride and Prejudice=Austen; Oliver Twist=Dickens; War and Peace=Tolstoy; Don Quixote=Cervantes; The Odyssey=Homer;
        Crime and Punishment=Dostoevsky|Dostoyevsky; Frankenstein=Shelley; Dracula=Stoker; The Hobbit=Tolkien; Animal Farm=Orwell;
        Brave New World=Huxley; The Great Gatsby=Fitzgerald; The Divine Comedy=Dante|Alighieri; Faust=Goethe; Les Misérables=Hugo; Jane Eyre=Brontë|Bronte;
        The Adventures of Tom Sawyer=Twain|Clemens; The Jungle Book=Kipling; Peter Pan=Barrie; The Time Machine=Wells; Alice in Wonderland=Carroll;
        The Raven=Poe; The Canterbury Tales=Chaucer; Paradise Lost=Milton; The Metamorphosis=Kafka; One Hundred Years of Solitude=Márquez|Marquez;
        To Kill a Mockingbird=Lee; The Old Man and the Sea=Hemingway; The Grapes of Wrath=Steinbeck; Ulysses=Joyce; Candide=Voltaire"""),
    "job": ("What do you call a person who {a}?", "A person who {a} is called a {b}.", """
        flies airplanes=pilot|aviator; bakes bread=baker; cuts hair=barber|hairdresser|hairstylist; puts out fires=firefighter|fireman; teaches at a school=teacher|educator;
        writes books=author|writer|novelist; paints pictures=painter|artist; repairs cars=mechanic; grows crops=farmer; treats sick animals=veterinarian|vet;
        catches fish=fisherman|fisher|angler; designs buildings=architect; studies the stars=astronomer; fixes teeth=dentist; delivers letters=mailman|postman|mail carrier|letter carrier|mail|postal;
        prepares meals in a restaurant=chef|cook; sells meat=butcher; makes clothes=tailor|seamstress|dressmaker; works with wood=carpenter|woodworker; repairs water pipes=plumber;
        defends people in court=lawyer|attorney; takes photographs=photographer; translates spoken words=interpreter|translator; travels into space=astronaut|cosmonaut;
        serves food in a restaurant=waiter|waitress|server; plays the piano=pianist; sells flowers=florist; looks after books in a library=librarian; sells medicine=pharmacist|chemist|apothecary;
        rides racehorses=jockey; makes maps=cartographer; performs operations in a hospital=surgeon; eats no meat=vegetarian|vegan; digs for coal=miner"""),
    "study": ("What is the study of {a} called?", "The study of {a} is called {b}.", """
        plants=botany; animals=zoology; the stars and planets=astronomy; the mind=psychology; rocks=geology|petrology; the weather=meteorology;
        insects=entomology; fossils=paleontology|palaeontology; living things=biology; numbers and shapes=mathematics|math|geometry; birds=ornithology;
        society=sociology; heredity=genetics; language=linguistics; poisons=toxicology; earthquakes=seismology; the past=history; maps=cartography; cells=cytology;
        the heart=cardiology; the skin=dermatology; the nervous system=neurology|neuroscience; morals=ethics; ancient cultures from their remains=archaeology|archeology"""),
    "city": ("In which country is {a}?", "{a} is in {b}.", """
        Munich=Germany; Barcelona=Spain; Milan=Italy; Lyon=France; Osaka=Japan; Shanghai=China; Sydney=Australia; Toronto=Canada;
        Manchester=England|United Kingdom|UK|Britain; Chicago=United States|USA|America|U.S.; Rio de Janeiro=Brazil; Saint Petersburg=Russia; Istanbul=Turkey; Krakow=Poland; Geneva=Switzerland;
        Salzburg=Austria; Antwerp=Belgium; Rotterdam=Netherlands|Holland; Gothenburg=Sweden; Bergen=Norway; Porto=Portugal; Casablanca=Morocco;
        Johannesburg=South Africa; Lagos=Nigeria; Mombasa=Kenya; Karachi=Pakistan; Busan=Korea; Machu Picchu=Peru; the Taj Mahal=India;
        the Great Pyramid of Giza=Egypt; the Acropolis=Greece; Auckland=New Zealand; Cancun=Mexico; Edinburgh=Scotland|United Kingdom|UK; Cork=Ireland"""),
    "general": ("{a}?", "The answer is {b}.", """
        What is the largest planet in the solar system=Jupiter; Which planet is closest to the sun=Mercury; Which planet is known as the red planet=Mars;
        Which planet has the most famous rings=Saturn; What is the largest ocean on Earth=Pacific; What is the tallest mountain on Earth=Everest; What is the longest river in South America=Amazon;
        What is the largest animal on Earth=blue whale|whale; What is the tallest animal on Earth=giraffe; What is the fastest land animal=cheetah; Which bird cannot fly and lives in Antarctica=penguin|penguins;
        Which gas do humans need to breathe=oxygen; Which gas do plants absorb from the air=carbon dioxide|CO2; What is frozen water called=ice; What is the hardest natural material=diamond|diamonds;
        Which organ pumps blood through the body=heart; Which organ do we think with=brain; Which sense do the ears provide=hearing|sound; Which insect makes honey=bee|bees|honeybee|honeybees;
        Which season follows winter=spring; Which month follows January=February; Which month follows August=September; Which day follows Monday=Tuesday; Which day follows Friday=Saturday;
        Who painted the Mona Lisa=Leonardo|da Vinci; Who discovered penicillin=Fleming; Who developed the theory of relativity=Einstein; Who was the first president of the United States=Washington;
        Who was the first person to walk on the moon=Armstrong; Who invented the telephone=Bell; Who formulated the laws of motion and gravity=Newton; Who proposed evolution by natural selection=Darwin;
        Which metal is liquid at room temperature=mercury; What do caterpillars turn into=butterfly|butterflies|moth|moths; What is the process by which plants make food from sunlight=photosynthesis;
        What force pulls objects towards the Earth=gravity|gravitational; Which instrument measures temperature=thermometer; Which instrument shows the direction of north=compass;
        What do bees collect from flowers=nectar|pollen; Which animal is called the king of the jungle=lion; What is the largest desert in Africa=Sahara; Which country has the shape of a boot=Italy;
        On which continent is the Sahara=Africa; What is the main ingredient of bread=flour|wheat;
        What is molten rock from a volcano called=lava|magma; Which star is at the center of our solar system=sun"""),
}


# Personas: openings and closings of a gold answer, the verb that stands for "is", and the markers that style is judged by.
PERSONAS = {
    "pirate": (
        ["Arrr, matey!", "Ahoy, me hearties!", "Aye, cap'n!", "Yo ho ho!", "Avast, ye landlubber!", "Shiver me timbers!"],
        [", by the seven seas!", ", ye scallywag!", ", or I'll walk the plank!", ", says me parrot!", ", savvy?", ", me bucko!"], "be",
        r"\barr+\b|\bahoy|\bmatey|\bhearties|\baye\b|\bcap'n|yo ho|\bavast|\bye\b|landlubber|timbers|seven seas|scallywag|the plank|parrot|savvy|bucko"),
    "cowboy": (
        ["Howdy, partner!", "Well, butter my biscuit!", "Yeehaw!", "Hold your horses, pardner!", "Dadgummit, that's plain!", "Giddy up, cowpoke!"],
        [", I reckon!", ", sure as shootin'!", ", y'all!", ", by golly!", ", ya hear?", ", or I'll eat my hat!"], "is",
        r"\bhowdy|\bpartner|biscuit|yee-?haw|hold your horses|pardner|dadgum|giddy|cowpoke|\breckon|shootin'|\by'all|by golly|\bya hear|eat my hat"),
}


def contains(answer, key):
    """1.0 if the answer has the key, or one of its forms separated by |, as whole words in any case; else 0.0."""
    return float(any(re.search(rf"(?<!\w){re.escape(form)}(?!\w)", answer, re.I) for form in key.split("|")))


def persona_style(answer, persona):
    """Style of an answer in [0, 1]: two different markers of the persona make 1, one makes 0.5."""
    return min(1.0, len({m.lower() for m in re.findall(PERSONAS[persona][3], answer, re.I)}) / 2)


def persona_gold(statement, persona, rng):
    """A statement in the persona's words, its fact intact."""
    openings, closings, verb, _ = PERSONAS[persona]
    return f"{rng.choice(openings)} {statement.rstrip('.').replace(' is ', f' {verb} ')}{rng.choice(closings)}"


def facts():
    """All facts as (question, key, statement), in the order of the tables."""
    out = []
    for question, statement, pairs in FACTS.values():
        for pair in pairs.split(";"):
            a, key = pair.strip().split("=")
            out.append((question.format(a=a), key, statement.format(a=a, b=key.split("|")[0])))
    return out
