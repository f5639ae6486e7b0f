"""Tableaux of explicit Runge-Kutta methods, some with an embedded method for the error."""

from dataclasses import dataclass
from fractions import Fraction

Row = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Tableau:
    """A Runge-Kutta method.

    c: the places of the stages, c_0 = 0.
    a: the weights of the slopes before stage i, for i = 1, 2, ...; their sums are c_i.
    b: the weights of all slopes in the step.
    e: b minus the weights of the embedded method; empty if there is none.
    """

    c: Row
    a: tuple[Row, ...]
    b: Row
    e: Row = ()

    @property
    def probes_end(self) -> bool:
        """True if a stage stands at the end of the step."""
        return 1.0 in self.c


EULER = Tableau(c=(0.0,), a=(), b=(1.0,))
HEUN = Tableau(c=(0.0, 1.0), a=((1.0,),), b=(0.5, 0.5))
RALSTON_3 = Tableau(c=(0.0, 1 / 2, 3 / 4), a=((1 / 2,), (0.0, 3 / 4)), b=(2 / 9, 1 / 3, 4 / 9))
RK4 = Tableau(
    c=(0.0, 0.5, 0.5, 1.0),
    a=((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
)


def make_midpoint(share: float, second: float) -> Tableau:
    """Returns the method of two stages whose second, at that share of h, weighs `second`."""
    return Tableau(c=(0.0, share), a=((share,),), b=(1.0 - second, second))


def read_embedded(text: str) -> Tableau:
    """Returns the method of a table of lines c_i | a_i0 a_i1 ..., whose last stage is the step.

    text: a line without a bar goes on with the one before it. The last row is that of "e", or of
        "embedded", the weights of the method that is subtracted.
    """
    rows: list[tuple[str, list[float]]] = []
    for line in text.strip().splitlines():
        place, bar, weights = line.rpartition("|")
        if bar:
            rows.append((place.strip(), []))
        rows[-1][1].extend(float(Fraction(number)) for number in weights.split())
    *stages, (label, last) = rows
    c = (0.0, *(float(Fraction(place)) for place, _ in stages))
    b = (*stages[-1][1], 0.0)
    e = last if label == "e" else [x - y for x, y in zip(b, last, strict=True)]
    return Tableau(c, tuple(tuple(weights) for _, weights in stages), b, tuple(e))


BOGACKI_SHAMPINE = read_embedded("""
    1/2 | 1/2
    3/4 | 0 3/4
    1   | 2/9 1/3 4/9
    embedded | 7/24 1/4 1/3 1/8
""")
DORMAND_PRINCE = read_embedded("""
    1/5  | 1/5
    3/10 | 3/40 9/40
    4/5  | 44/45 -56/15 32/9
    8/9  | 19372/6561 -25360/2187 64448/6561 -212/729
    1    | 9017/3168 -355/33 46732/5247 49/176 -5103/18656
    1    | 35/384 0 500/1113 125/192 -2187/6784 11/84
    e    | 71/57600 0 -71/16695 71/1920 -17253/339200 22/525 -1/40
""")
TSITOURAS = read_embedded("""
    0.161 | 0.161
    0.327 | -0.008480655492356989 0.335480655492357
    0.9   | 2.8971530571054935 -6.359448489975075 4.3622954328695815
    0.9800255409045097 | 5.325864828439257 -11.748883564062828 7.4955393428898365
        -0.09249506636175525
    1     | 5.86145544294642 -12.92096931784711 8.159367898576159 -0.071584973281401
        -0.028269050394068383
    1     | 0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081
        2.324710524099774
    e     | -0.00178001105222577714 -0.0008164344596567469 0.007880878010261995
        -0.1447110071732629 0.5823571654525552 -0.45808210592918697 1/66
""")
PRINCE_DORMAND = read_embedded("""
    1/18 | 1/18
    1/12 | 1/48 1/16
    1/8 | 1/32 0 3/32
    5/16 | 5/16 0 -75/64 75/64
    3/8 | 3/80 0 0 3/16 3/20
    59/400 | 29443841/614563906 0 0 77736538/692538347 -28693883/1125000000 23124283/1800000000
    93/200 | 16016141/946692911 0 0 61564180/158732637 22789713/633445777 545815736/2771057229
        -180193667/1043307555
    5490023248/9719169821 | 39632708/573591083 0 0 -433636366/683701615 -421739975/2616292301
        100302831/723423059 790204164/839813087 800635310/3783071287
    13/20 | 246121993/1340847787 0 0 -37695042795/15268766246 -309121744/1061227803
        -12992083/490766935 6005943493/2108947869 393006217/1396673457 123872331/1001029789
    1201146811/1299019798 | -1028468189/846180014 0 0 8478235783/508512852 1311729495/1432422823
        -10304129995/1701304382 -48777925059/3047939560 15336726248/1032824649
        -45442868181/3398467696 3065993473/597172653
    1 | 185892177/718116043 0 0 -3185094517/667107341 -477755414/1098053517 -703635378/230739211
        5731566787/1027545527 5232866602/850066563 -4093664535/808688257 3962137247/1805957418
        65686358/487910083
    1 | 403863854/491063109 0 0 -5068492393/434740067 -411421997/543043805 652783627/914296604
        11173962825/925320556 -13158990841/6184727034 3936647629/1978049680 -160528059/685178525
        248638103/1413531060 0
    1 | 14005451/335480064 0 0 0 0 -59238493/1068277825 181606767/758867731 561292985/797845732
        -1041891430/1371343529 760417239/1151165299 118820643/751138087 -528747749/2220607170 1/4
    embedded | 13451932/455176623 0 0 0 0 -808719846/976000145 1757004468/5645159321
        656045339/265891186 -3867574721/1518517206 465885868/322736535 53011238/667516719 2/45 0 0
""")
